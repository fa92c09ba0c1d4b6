//! Books as rows.

use herald_core::{
    books::{Cancel, ChannelTotals, Tally, Totals},
    ids::TenantId,
};

use super::rows::{CancelProgressRow, ChannelTotalsRow, TotalsRow};

/// The row of a notification's books.
pub fn totals_row(totals: &Totals) -> TotalsRow {
    let channels = totals.channels.iter().map(|(channel, t)| {
        let row = ChannelTotalsRow {
            created: t.created.count,
            created_hash_sum: t.created.hash_sum,
            ended: t.ended.count,
            ended_hash_sum: t.ended.hash_sum,
            delivered: t.delivered,
            suppressed: t.suppressed.clone(),
            failed: t.failed,
            dead: t.dead,
            unconfirmed: t.unconfirmed.count,
            unconfirmed_hash_sum: t.unconfirmed.hash_sum,
        };
        (*channel, row)
    });
    TotalsRow {
        tenant: totals.tenant.as_str().into(),
        channels: channels.collect(),
        recipients: totals.recipients,
        complete: totals.complete,
        applied: totals.applied,
        updated_ms: totals.updated_ms,
        cancel: totals.cancel.as_ref().map(|cancel| CancelProgressRow {
            requests: cancel.requests.iter().copied().collect(),
            shards: cancel.shards.iter().copied().collect(),
            closed: cancel.closed,
        }),
    }
}

/// The books of a row.
pub fn to_totals(row: TotalsRow) -> Totals {
    let channels = row.channels.into_iter().map(|(channel, row)| {
        let totals = ChannelTotals {
            created: Tally { count: row.created, hash_sum: row.created_hash_sum },
            ended: Tally { count: row.ended, hash_sum: row.ended_hash_sum },
            delivered: row.delivered,
            suppressed: row.suppressed,
            failed: row.failed,
            dead: row.dead,
            unconfirmed: Tally { count: row.unconfirmed, hash_sum: row.unconfirmed_hash_sum },
        };
        (channel, totals)
    });
    Totals {
        tenant: TenantId::trusted(&row.tenant),
        channels: channels.collect(),
        recipients: row.recipients,
        complete: row.complete,
        applied: row.applied,
        updated_ms: row.updated_ms,
        cancel: row.cancel.map(|cancel| Cancel {
            requests: cancel.requests.into_iter().collect(),
            shards: cancel.shards.into_iter().collect(),
            closed: cancel.closed,
        }),
    }
}
