//! Messages as JSON with every field there: what has no value is null.
//!
//! Protobuf's JSON leaves such fields out, and a reader would have to know which. The serializer of a message names it
//! by its full name, so the fields that it leaves out are known from the descriptors.

use std::{collections::HashMap, sync::LazyLock};

use serde::{
    Serialize,
    ser::{SerializeMap, SerializeSeq, SerializeStruct, Serializer},
};

use crate::descriptors::pool;

/// The fields of each message, in the order in which they are written.
static FIELDS: LazyLock<HashMap<String, Vec<String>>> = LazyLock::new(|| {
    let names = |message: prost_reflect::MessageDescriptor| {
        let fields = message.descriptor_proto().field.iter().map(|field| field.name().to_owned()).collect();
        (message.full_name().to_owned(), fields)
    };
    pool().all_messages().filter(|message| !holds_either(message.name())).map(names).collect()
});

/// The results of a batch hold either what was done or an `error`, so what they have not is not there.
pub(crate) fn holds_either(message: &str) -> bool {
    message.ends_with("Result")
}

/// A value whose messages show every field.
pub(crate) struct Present<'a, T: ?Sized>(pub(crate) &'a T);

impl<T: Serialize + ?Sized> Serialize for Present<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Presenting(serializer))
    }
}

/// Hands everything on; fields of messages, items and values pass through it again.
struct Presenting<S>(S);

/// A message that is being written.
struct Message<S> {
    inner: S,
    /// The fields that are still to come.
    left: std::slice::Iter<'static, String>,
}

impl<S: SerializeStruct> Message<S> {
    /// Writes null for the fields before this one, or for all that are left.
    fn skip_to(&mut self, name: Option<&str>) -> Result<(), S::Error> {
        for field in self.left.by_ref() {
            if name == Some(field.as_str()) {
                break;
            }
            self.inner.serialize_field(field.as_str(), &None::<()>)?;
        }
        Ok(())
    }
}

impl<S: SerializeStruct> SerializeStruct for Message<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), S::Error> {
        self.skip_to(Some(name))?;
        self.inner.serialize_field(name, &Present(value))
    }

    fn end(mut self) -> Result<S::Ok, S::Error> {
        self.skip_to(None)?;
        self.inner.end()
    }
}

/// The items of a list or an object.
struct Items<S>(S);

impl<S: SerializeSeq> SerializeSeq for Items<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_element(&Present(value))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

impl<S: SerializeMap> SerializeMap for Items<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.0.serialize_key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_value(&Present(value))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

/// Methods that hand a plain value on.
macro_rules! hand_on {
    ($($method:ident($value:ty))*) => {
        $(fn $method(self, value: $value) -> Result<S::Ok, S::Error> {
            self.0.$method(value)
        })*
    };
}

impl<S: Serializer> Serializer for Presenting<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Items<S::SerializeSeq>;
    type SerializeTuple = S::SerializeTuple;
    type SerializeTupleStruct = S::SerializeTupleStruct;
    type SerializeTupleVariant = S::SerializeTupleVariant;
    type SerializeMap = Items<S::SerializeMap>;
    type SerializeStruct = Message<S::SerializeStruct>;
    type SerializeStructVariant = S::SerializeStructVariant;

    hand_on! {
        serialize_bool(bool)
        serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64) serialize_i128(i128)
        serialize_u8(u8) serialize_u16(u16) serialize_u32(u32) serialize_u64(u64) serialize_u128(u128)
        serialize_f32(f32) serialize_f64(f64)
        serialize_char(char) serialize_str(&str) serialize_bytes(&[u8])
        serialize_unit_struct(&'static str)
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_none()
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Present(value))
    }

    fn serialize_unit_variant(self, name: &'static str, i: u32, variant: &'static str) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit_variant(name, i, variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_struct(name, &Present(value))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_variant(name, index, variant, &Present(value))
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.0.serialize_seq(length).map(Items)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.0.serialize_map(length).map(Items)
    }

    fn serialize_struct(self, name: &'static str, length: usize) -> Result<Self::SerializeStruct, S::Error> {
        let fields = FIELDS.get(name).map_or(&[][..], Vec::as_slice);
        // A struct that is said to be empty is closed at once.
        let inner = self.0.serialize_struct(name, length.max(fields.len()))?;
        Ok(Message { inner, left: fields.iter() })
    }

    fn serialize_tuple(self, length: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.0.serialize_tuple(length)
    }

    fn serialize_tuple_struct(self, name: &'static str, length: usize) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.0.serialize_tuple_struct(name, length)
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.0.serialize_tuple_variant(name, index, variant, length)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.0.serialize_struct_variant(name, index, variant, length)
    }
}

#[cfg(test)]
mod tests {
    use herald_proto::v1;

    use super::*;

    fn json(value: &impl Serialize) -> String {
        serde_json::to_string(&Present(value)).unwrap()
    }

    #[test]
    fn what_has_no_value_is_null_in_its_place() {
        let item = v1::InboxItem { title: "t".into(), read_at: Some(Default::default()), ..Default::default() };
        let list = v1::ListInboxResponse { items: vec![item], ..Default::default() };
        assert_eq!(
            json(&list),
            "{\"items\":[{\"instance_id\":\"\",\"request_id\":\"\",\"title\":\"t\",\"body\":\"\",\"data\":null,\
             \"created_at\":null,\"seen_at\":null,\"read_at\":\"1970-01-01T00:00:00+00:00\",\"archived_at\":null,\
             \"event_id\":\"\"}],\"counts\":null,\"next_page_token\":\"\"}"
        );
        let preferences = v1::Preferences {
            channels: [("email".to_owned(), v1::ChannelPreference::default())].into(),
            ..Default::default()
        };
        assert!(json(&preferences).contains("{\"email\":{\"enabled\":null,\"categories\":{}}}"));
    }

    #[test]
    fn a_result_holds_what_was_done_or_an_error() {
        let done = v1::NotifyResult { request_id: Some("r".into()), deduplicated: Some(false), error: None };
        let text = json(&v1::NotifyBatchResponse { results: vec![done] });
        assert_eq!(text, "{\"results\":[{\"request_id\":\"r\",\"deduplicated\":false}]}");
    }
}
