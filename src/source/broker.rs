//! An in-process broker that speaks Kafka's protocol (librdkafka's mock cluster), for the demo and for tests.
//!
//! It forgets all but 5 MiB per partition and keeps nothing on disk: real deployments use Kafka.

use std::sync::{Mutex, PoisonError};

use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};

use crate::clock::Micros;
use crate::error::{At, Error, Result};

/// A broker that lives as long as this value.
pub struct Broker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Broker {
    /// Starts a broker on a free port of the loopback interface.
    ///
    /// # Errors
    /// No socket to be had.
    pub fn start() -> Result<Self> {
        Ok(Self { cluster: MockCluster::new(1).at(|| "starting the embedded broker".into())? })
    }

    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        self.cluster.create_topic(name, partitions, 1).at(|| format!("creating topic {name}"))
    }

    /// `host:port` for `bootstrap.servers`.
    pub fn address(&self) -> String {
        self.cluster.bootstrap_servers()
    }
}

/// Sends messages and waits until the broker has them.
pub struct Sender {
    producer: ThreadedProducer<Refusals>,
}

/// What the broker refused, or did not take in time.
#[derive(Default)]
struct Refusals(Mutex<Option<KafkaError>>);

impl ClientContext for Refusals {}

impl ProducerContext for Refusals {
    type DeliveryOpaque = ();

    fn delivery(&self, outcome: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = outcome {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        }
    }
}

impl Sender {
    /// Connects with librdkafka settings; those that are a consumer's own are left out.
    ///
    /// # Errors
    /// Settings that librdkafka refuses.
    pub fn new(settings: &ClientConfig) -> Result<Self> {
        let of_consumers = |name: &str| {
            let families = ["group.", "fetch.", "queued.", "auto.offset.", "enable.auto.", "heartbeat.", "session.timeout."];
            families.iter().any(|family| name.starts_with(family)) || ["check.crcs", "partition.assignment.strategy", "max.poll.interval.ms"].contains(&name)
        };
        let mut own = ClientConfig::new();
        settings.config_map().iter().filter(|(name, _)| !of_consumers(name)).for_each(|(name, value)| _ = own.set(*name, *value));
        Ok(Self { producer: own.create_with_context(Refusals::default()).user_at(|| "Kafka producer settings".into())? })
    }

    /// Queues one message; blocks while the queue is full.
    ///
    /// # Errors
    /// The broker does not take it.
    pub fn send(&self, topic: &str, partition: Option<i32>, key: Option<&str>, value: &[u8], timestamp: Option<Micros>) -> Result<()> {
        let mut record = BaseRecord::<str, [u8]>::to(topic).payload(value);
        record.partition = partition;
        record.key = key;
        record.timestamp = timestamp.map(|time| time / 1000);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, back)) if error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::QueueFull) => {
                    record = back;
                    self.producer.poll(std::time::Duration::from_millis(10));
                }
                Err((error, _)) => return Err(Error::environment(format!("sending to topic {topic}")).because(error)),
            }
        }
    }

    /// Waits until everything queued is acknowledged, or refused.
    ///
    /// # Errors
    /// Some of it was not within the time.
    pub fn flush(&self, within: std::time::Duration) -> Result<()> {
        let place = || "waiting for the broker to take all messages".to_owned();
        self.producer.flush(within).at(place)?;
        self.producer.context().0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err).at(place)
    }
}
