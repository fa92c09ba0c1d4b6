//! Batches: JSON bodies that are an object with one list, whose items are counted while they are read.

use std::{cell::Cell, fmt, marker::PhantomData};

use herald_core::problem::Problem;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{explain::explain, json::parse};

/// Reads the items in the list `field` of a batch `B`. A good body is read once; where something in it does not fit, each
/// item is read for itself, so that one which is malformed takes no other with it. No more than `max` items are read.
///
/// # Errors
/// 400 where there are more, or where the batch cannot be read but for its items.
pub fn parse_items<B: DeserializeOwned, I: DeserializeOwned>(
    text: &[u8],
    field: &'static str,
    max: usize,
) -> Result<Vec<Result<I, Problem>>, Problem> {
    let too_many = Cell::new(false);
    if let Ok(items) = read(text, field, max, &too_many) {
        return Ok(items.into_iter().map(Ok).collect());
    }
    let raw: Result<Vec<&RawValue>, _> = read(text, field, max, &too_many);
    match raw {
        Ok(raw) => Ok(raw.into_iter().map(|item| parse(item.get().as_bytes())).collect()),
        Err(_) if too_many.get() => {
            Err(Problem::field(field, "too_many", format!("More than {max} are given; at most {max} are allowed.")))
        }
        Err(error) => Err(explain::<B>(text, &error)),
    }
}

fn read<'t, T: Deserialize<'t>>(
    text: &'t [u8],
    field: &'static str,
    max: usize,
    too_many: &Cell<bool>,
) -> serde_json::Result<Vec<T>> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let items = Batch(List { field, max, too_many, of: PhantomData }).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(items)
}

/// An object that has nothing but the list.
struct Batch<'a, T>(List<'a, T>);

/// The list, of at most so many items.
struct List<'a, T> {
    field: &'static str,
    max: usize,
    too_many: &'a Cell<bool>,
    of: PhantomData<T>,
}

impl<'t, T: Deserialize<'t>> DeserializeSeed<'t> for Batch<'_, T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'t, T: Deserialize<'t>> Visitor<'t> for Batch<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Vec<T>, A::Error> {
        let List { field, max, too_many, of } = self.0;
        let mut items = None;
        while let Some(name) = map.next_key::<String>()? {
            // What exactly is wrong is found with the batch's own type.
            if name != field || items.is_some() {
                return Err(A::Error::custom("the batch has more than its list"));
            }
            items = Some(map.next_value_seed(List { field, max, too_many, of })?);
        }
        Ok(items.unwrap_or_default())
    }
}

impl<'t, T: Deserialize<'t>> DeserializeSeed<'t> for List<'_, T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'t, T: Deserialize<'t>> Visitor<'t> for List<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == self.max {
                self.too_many.set(true);
                return Err(A::Error::custom("there are too many"));
            }
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use herald_proto::v1;

    use super::*;

    fn batch(text: &str, max: usize) -> Result<Vec<Result<v1::NotifyRequest, Problem>>, Problem> {
        parse_items::<v1::NotifyBatchRequest, _>(text.as_bytes(), "notifications", max)
    }

    #[test]
    fn a_malformed_item_takes_no_other_with_it() {
        let items = batch(r#"{"notifications": [{"template_id": "a"}, {"ttl": "1d"}, 5, {"template_id": "b"}]}"#, 4);
        let items = items.unwrap();
        assert_eq!((&*items[0].as_ref().unwrap().template_id, &*items[3].as_ref().unwrap().template_id), ("a", "b"));
        let field = |i: usize| items[i].as_ref().unwrap_err().errors()[0].field.as_str();
        assert_eq!((field(1), field(2)), ("ttl", ""));
        assert!(batch("{}", 2).unwrap().is_empty());
        for (text, code, field) in [
            (r#"{"notifications": [{"ttl": 1}], "nope": 1}"#, "invalid_argument", "notifications[0].ttl"),
            (r#"{"notifications": [{}], "nope": 1}"#, "invalid_argument", "nope"),
            (r#"{"notifications": [{"ttl": 1}], "notifications": []}"#, "invalid_argument", "notifications[0].ttl"),
            (r#"{"notifications": [{}], "notifications": []}"#, "invalid_argument", "notifications"),
            (r#"{"users": [{"ttl": 1}]}"#, "invalid_argument", "users"),
            (r#"{"notifications": {}}"#, "invalid_argument", "notifications"),
            (r#"{"notifications": [{"ttl": 1}, {"ttl": 1}, {}]}"#, "invalid_argument", "notifications"),
            (r#"{"notifications": [{}, {}, {}"#, "invalid_argument", "notifications"),
            (r#"{"notifications": [{}, {]}"#, "malformed_json", ""),
            (r#"{"notifications": []} {}"#, "malformed_json", ""),
        ] {
            let problem = batch(text, 2).unwrap_err();
            let named = problem.errors().first().map_or("", |error| &*error.field);
            assert_eq!((problem.code(), named), (code, field), "{text}");
        }
    }

    thread_local! {
        static READ: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts how many are read.
    struct Item;

    impl<'t> Deserialize<'t> for Item {
        fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
            READ.set(READ.get() + 1);
            serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
        }
    }

    #[test]
    fn of_a_batch_of_too_many_no_more_are_read_than_are_allowed() {
        for end in ["]}", "], \"nope\": 1}", "", "}"] {
            let items = ["{}"; 100_000].join(",");
            let text = format!("{{\"notifications\": [{items}{end}");
            let problem =
                parse_items::<v1::NotifyBatchRequest, Item>(text.as_bytes(), "notifications", 3).err().unwrap();
            let error = &problem.errors()[0];
            assert_eq!((&*error.field, error.code), ("notifications", "too_many"), "{end}");
        }
        assert_eq!(READ.with(std::cell::Cell::get), 4 * 4, "one more shows that there are too many");
    }
}
