//! Alerts as messages of a Kafka topic, keyed by alert id: compacted, the topic holds how each stands.

use std::time::Duration;

use super::{Failure, Format, Message, Sink};
use crate::source::broker::Sender;

pub struct Kafka {
    topic: String,
    sender: Sender,
    format: Format,
}

impl Kafka {
    pub fn new(sender: Sender, topic: &str, format: Format) -> Self {
        Self { topic: topic.to_owned(), sender, format }
    }
}

impl Sink for Kafka {
    fn deliver(&mut self, message: &Message<'_>) -> Result<(), Failure> {
        for parcel in message.parcels {
            let document = self.format.write(parcel).to_string();
            self.sender.send(&self.topic, None, Some(&parcel.alert.alert_id), document.as_bytes(), None)?;
        }
        Ok(self.sender.flush(Duration::from_secs(10))?)
    }
}
