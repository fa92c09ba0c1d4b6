//! What topics, groups and members are called on the cluster.

use std::collections::HashMap;

use herald_core::{
    ports::log::partition,
    topic::{Group, Topic, TopicPartition},
};
use rdkafka::{
    TopicPartitionList,
    topic_partition_list::{Offset, TopicPartitionListElem},
};

pub(super) struct Names {
    prefix: String,
    names: HashMap<Topic, String>,
    topics: HashMap<String, Topic>,
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        let names: HashMap<Topic, String> = Topic::all().map(|topic| (topic, format!("{prefix}.{topic}"))).collect();
        let topics = names.iter().map(|(topic, name)| (name.clone(), *topic)).collect();
        Self { prefix: prefix.to_owned(), names, topics }
    }

    pub fn topic(&self, topic: Topic) -> &str {
        // Every topic is in the map, which is made of `Topic::all`.
        self.names.get(&topic).map_or("", String::as_str)
    }

    /// Where the log says what it is.
    pub fn meta(&self) -> String {
        format!("{}.meta", self.prefix)
    }

    pub fn group(&self, group: Group) -> String {
        format!("{}.{}", self.prefix, group.name())
    }

    /// A member's name, in its group and as the owner of transactions.
    pub fn member(&self, group: Group, ordinal: u32) -> String {
        format!("{}.{}.{ordinal}", self.prefix, group.name())
    }

    /// The partition of a topic's name; `None` if the topic is not ours.
    pub fn at(&self, topic: &str, number: i32) -> Option<TopicPartition> {
        Some(partition(*self.topics.get(topic)?, u32::try_from(number).ok()?))
    }

    /// A list for librdkafka.
    pub fn list(&self, offsets: impl IntoIterator<Item = (TopicPartition, Offset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (at, offset) in offsets {
            let mut element = list.add_partition(self.topic(at.topic), at.partition as i32);
            // Fails for offsets below zero that have no meaning, which `Offset` cannot say.
            let _valid = element.set_offset(offset);
        }
        list
    }

    /// The partitions of a list that are ours.
    pub fn partitions(&self, list: &TopicPartitionList) -> Vec<TopicPartition> {
        list.elements().iter().filter_map(|element| self.of(element)).collect()
    }

    /// The partition of a list's element.
    pub fn of(&self, element: &TopicPartitionListElem<'_>) -> Option<TopicPartition> {
        self.at(element.topic(), element.partition())
    }
}
