//! Whether a row can be read: for verification, which goes through all of them.

use bytes::Bytes;
use herald_core::{ports::StoreError, record};
use prost::Message;

use super::{
    items::ItemRow,
    keys::Table,
    rows::{
        AdmissionRow, AdmittedRowValue, ExportRow, FORMAT, FeedRow, PersonRow, PolicyRow, SectionRow, TotalsRow,
        damaged, decode,
    },
};
use crate::kv::Row;

/// Reads a row as whoever needs it would. Rows of tables that this version does not know are taken for good.
pub fn check_row((key, value): &Row) -> Result<(), StoreError> {
    let table = key.first().copied().ok_or_else(|| damaged("an empty key"))?;
    match table {
        t if t == Table::Person as u8 => read::<PersonRow>("people", value),
        t if t == Table::Admission as u8 => read::<AdmissionRow>("admissions", value),
        t if t == Table::Totals as u8 => read::<TotalsRow>("totals", value),
        t if t == Table::Admitted as u8 => read::<AdmittedRowValue>("admitted requests", value),
        t if t == Table::Receipts as u8 => read::<record::Receipts>("receipts", value),
        t if t == Table::Export as u8 => read::<ExportRow>("exports", value),
        t if t == Table::InboxItem as u8 => ItemRow::decode(value).map(drop),
        t if t == Table::InboxSection as u8 => read::<SectionRow>("inbox sections", value),
        t if t == Table::Feed as u8 => read::<FeedRow>("feeds", value),
        t if t == Table::Policy as u8 => read::<PolicyRow>("policies", value),
        t if t == Table::Audience as u8 || t == Table::UserLog as u8 => match value.first() {
            Some(&FORMAT) => Ok(()),
            _ => Err(damaged("something of an unknown format")),
        },
        _ => Ok(()),
    }
}

fn read<M: Message + Default>(what: &str, value: &Bytes) -> Result<(), StoreError> {
    decode::<M>(what, value).map(drop)
}
