//! Tenants' quotas: how many notifications they may hand over in calls. Each gateway keeps buckets of its own.

use std::collections::HashMap;

use herald_api::auth::Authenticated;
use herald_core::{
    auth::Scope,
    bucket::{Bucket, Quota},
    ids::TenantId,
    policy::{Policy, QuotaRow},
    problem::{Kind, Problem},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;

use crate::service::Gateway;

/// The quota's name in headers.
const NAME: &str = "notifications";

/// `RateLimit-Policy` and `RateLimit` of the IETF's draft on rate limit headers.
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Nobody is told to stay away for longer: quotas may be raised.
const LONGEST_WAIT_S: u64 = 3_600;

/// The buckets of tenants that have a quota.
#[derive(Debug, Default)]
pub struct Quotas(Mutex<HashMap<TenantId, Bucket>>);

impl Quotas {
    fn with_bucket<T>(&self, tenant: &TenantId, quota: Quota, now_ms: u64, use_it: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut buckets = self.0.lock();
        let bucket = match buckets.get_mut(tenant) {
            Some(bucket) => bucket,
            None => buckets.entry(tenant.clone()).or_insert_with(|| Bucket::full(quota, now_ms)),
        };
        bucket.fill(quota, now_ms);
        use_it(bucket)
    }
}

fn quota_of(policy: &Policy, tenant: &TenantId) -> Option<Quota> {
    let QuotaRow { per_second, burst } = policy.tenant(tenant)?.quota.as_ref()?;
    Quota::new(*per_second, *burst)
}

impl Gateway {
    /// Takes what a call with so many notifications needs of the tenant's quota.
    ///
    /// # Errors
    /// 429 if that is not there now; 422 if it never is.
    pub(crate) fn take_quota(&self, policy: &Policy, tenant: &TenantId, count: usize) -> Result<(), Problem> {
        let Some(quota) = quota_of(policy, tenant) else { return Ok(()) };
        let (count, capacity) = (count as u64, quota.capacity());
        if count > capacity && capacity > 0 {
            let detail = format!("The quota lets {capacity} notifications in at once. Send smaller batches.");
            return Err(Problem::refused("batch_above_quota", detail));
        }
        let wait_ms = self.quotas.with_bucket(tenant, quota, self.deps.world.steady_ms(), |bucket| {
            if bucket.tokens(0) < count {
                return Some(bucket.wait_ms(count, 0));
            }
            bucket.take(count);
            None
        });
        match wait_ms {
            None => Ok(()),
            Some(wait_ms) => {
                let seconds = wait_ms.div_ceil(1_000).clamp(1, LONGEST_WAIT_S);
                let detail = "The tenant's quota of notifications is used up. Nothing was accepted.";
                Err(Problem::new(Kind::TooMany, "quota_exceeded", detail).with_retry_after(seconds as u32))
            }
        }
    }

    /// Tells a caller whose tenant has a quota what is left of it.
    pub(crate) fn tell_quota(&self, who: &Authenticated, headers: &mut HeaderMap) {
        let Ok(tenant) = who.caller.require(Scope::Notify) else { return };
        let Some(quota) = quota_of(&who.policy, tenant) else { return };
        let seconds = |ms: u64| ms.div_ceil(1_000).min(LONGEST_WAIT_S);
        let capacity = quota.capacity();
        let (left, until_full_ms) = self.quotas.with_bucket(tenant, quota, self.deps.world.steady_ms(), |bucket| {
            (bucket.tokens(0), bucket.wait_ms(capacity, 0))
        });
        let window_s = seconds(quota.ms_for(capacity)).max(1);
        for (name, text) in [
            (RATE_LIMIT_POLICY, format!("\"{NAME}\";q={capacity};w={window_s}")),
            (RATE_LIMIT, format!("\"{NAME}\";r={left};t={}", seconds(until_full_ms))),
        ] {
            // Of digits and plain letters a header can always be made.
            headers.extend(HeaderValue::from_str(&text).ok().map(|value| (name, value)));
        }
    }
}
