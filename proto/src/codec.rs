//! The codec of gRPC: prost's own, behind a count of what a message has.

use std::marker::PhantomData;

use bytes::Buf;
use prost::{
    Message,
    encoding::{DecodeContext, decode_key, skip_field},
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// The most fields at the top of a message, where the items of a batch are. An empty item has two bytes on the wire and
/// some hundred in memory, so that a batch which is small enough as bytes could take gigabytes before its items are
/// counted. No call takes as many, and calls refuse what is too many for them in their own words.
const MAX_FIELDS: usize = 1 << 16;

/// A field has a key and at least one byte more.
const LEAST_FIELD_BYTES: usize = 2;

/// As [`tonic_prost::ProstCodec`]; a message of more than 65,536 fields at its top is refused before it is decoded.
pub struct Counting<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Counting<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Counting<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CountingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        CountingDecoder(ProstDecoder::default())
    }
}

/// The decoder of [`Counting`].
pub struct CountingDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for CountingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // Nearly all are too short to have too many.
        if message.remaining() > MAX_FIELDS * LEAST_FIELD_BYTES && has_too_many_fields(message.chunk()) {
            let detail = format!("The message has more than {MAX_FIELDS} fields: send it in parts.");
            return Err(Status::invalid_argument(detail));
        }
        self.0.decode(message)
    }
}

/// Whether there are more than [`MAX_FIELDS`], as far as the message can be read.
fn has_too_many_fields(mut message: &[u8]) -> bool {
    let mut fields = 0;
    while fields <= MAX_FIELDS {
        let read = decode_key(&mut message)
            .and_then(|(tag, wire)| skip_field(wire, tag, &mut message, DecodeContext::default()));
        if read.is_err() {
            return false;
        }
        fields += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of so many empty notifications on the wire.
    fn batch(items: usize) -> Vec<u8> {
        [0x0a, 0].repeat(items)
    }

    #[test]
    fn the_fields_of_a_message_are_counted_up_to_where_it_breaks_off() {
        assert!(!has_too_many_fields(&batch(MAX_FIELDS)) && has_too_many_fields(&batch(MAX_FIELDS + 1)));
        let broken = [batch(MAX_FIELDS), vec![0x0a, 5]].concat();
        assert!(!has_too_many_fields(&broken), "the decoder says what is wrong with it");
        let nested = [&[0x0a, 4][..], &batch(2)].concat().repeat(MAX_FIELDS);
        assert!(!has_too_many_fields(&nested), "only what is at the top is counted");
        assert!(MAX_FIELDS * size_of::<crate::v1::NotifyRequest>() <= 64 << 20, "what is decoded is bounded");
    }
}
