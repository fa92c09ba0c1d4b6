//! Deleting what every group has passed. Topics that hold waiting work never lose a record by time or size, so somebody
//! has to: every process does, since a second deletion of the same is nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use herald_core::{
    ports::log::LogError,
    topic::{Group, Retention, Topic, TopicPartition},
};
use rdkafka::{
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    topic_partition_list::Offset,
};

use super::{KafkaLog, reading::ANSWER, unavailable};

impl KafkaLog {
    /// Deletes now and then, for as long as somebody has the log.
    pub(super) fn spawn_trimming(&self) {
        let every = Duration::from_millis(self.shared.config.trim_interval_ms.max(1_000));
        let log = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            let mut passed = BTreeMap::new();
            loop {
                tokio::time::sleep(every).await;
                let Some(shared) = log.upgrade() else { return };
                match (Self { shared }).trim_beyond(&passed).await {
                    Ok(trimmed) => passed.extend(trimmed),
                    Err(error) => tracing::warn!(%error, "what every group has passed is not deleted yet"),
                }
            }
        });
    }

    /// Deletes what every group has passed.
    ///
    /// # Errors
    /// The cluster is away; some of it may be deleted.
    pub async fn trim(&self) -> Result<(), LogError> {
        self.trim_beyond(&BTreeMap::new()).await.map(|_| ())
    }

    /// Deletes what every group has passed, where that is further than it was. Returns how far.
    async fn trim_beyond(
        &self,
        before: &BTreeMap<TopicPartition, u64>,
    ) -> Result<BTreeMap<TopicPartition, u64>, LogError> {
        let mut passed = self.passed().await?;
        passed.retain(|at, offset| *offset > before.get(at).copied().unwrap_or(0));
        if passed.is_empty() {
            return Ok(passed);
        }
        let shared = &self.shared;
        let failed = |error: &dyn std::fmt::Display| unavailable("records cannot be deleted", error);
        let admin: AdminClient<DefaultClientContext> =
            shared.config.client().map_err(|e| failed(&e))?.create().map_err(|e| failed(&e))?;
        let offsets = shared.names.list(passed.iter().map(|(at, offset)| (*at, Offset::Offset(*offset as i64))));
        let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
        let deleted = admin.delete_records(&offsets, &options).await.map_err(|e| failed(&e))?;
        for element in deleted.elements() {
            element
                .error()
                .map_err(|error| failed(&format!("{}/{}: {error}", element.topic(), element.partition())))?;
        }
        Ok(passed)
    }

    /// How far every group that reads a partition has come, where records go once they are consumed.
    async fn passed(&self) -> Result<BTreeMap<TopicPartition, u64>, LogError> {
        let consumed: Vec<Topic> = Topic::all().filter(|topic| topic.retention() == Retention::Consumed).collect();
        let groups: BTreeSet<u8> =
            consumed.iter().flat_map(|topic| topic.readers()).map(|group| group.code()).collect();
        let mut passed: BTreeMap<TopicPartition, u64> = BTreeMap::new();
        for group in groups.into_iter().filter_map(Group::of_code) {
            let at: Vec<TopicPartition> =
                self.partitions(group).into_iter().filter(|at| at.topic.retention() == Retention::Consumed).collect();
            for (at, offset) in at.iter().zip(self.committed(group, at.clone()).await?) {
                passed.entry(*at).and_modify(|least| *least = offset.min(*least)).or_insert(offset);
            }
        }
        Ok(passed)
    }
}
