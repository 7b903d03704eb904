//! Kafka as a source: messages with positions, in polls.
//!
//! One consumer on a thread of its own; it does nothing but fetch. Offsets come from the archive, not from the consumer group:
//! what the group remembers is for lag tools. Settings are librdkafka's own and are passed through.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{Message as _, Timestamp};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use crate::clock::{self, Micros};
use crate::error::{At, Error, Result};

/// One message, copied out of the client's buffers.
pub struct Fetched {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    pub append_time: Option<Micros>,
    /// The broker set the time (LogAppendTime), not the producer: it follows the clock.
    pub by_broker: bool,
    pub value: Vec<u8>,
}

/// What one poll gave.
pub struct Poll {
    pub messages: Vec<Fetched>,
    /// Wall clock when the first of them was taken.
    pub received_at: Micros,
}

/// Events of the source, in order.
pub enum Event {
    Poll(Poll),
    /// Partitions now owned, with the offset at which each starts.
    Assigned(BTreeMap<(String, i32), i64>),
    /// Partitions about to be lost; answer when what was read of them is committed.
    Revoked(SyncSender<()>),
    /// The consumer stopped: at the end of its work, or with the error that ended it.
    Ended(Option<Error>),
}

/// Most messages and bytes of one poll, and how long it waits for more: the knob between latency and efficiency.
const POLL_MESSAGES: usize = 8_192;
const POLL_BYTES: usize = 8 << 20;
const POLL_TIME: Duration = Duration::from_millis(20);

/// Finds where partitions start: the archive's answer.
pub type StartOffsets = Box<dyn Fn(&[(String, i32)]) -> Result<BTreeMap<(String, i32), i64>> + Send + Sync>;

/// Callbacks of the consumer group.
pub struct Context {
    starts: StartOffsets,
    events: SyncSender<Event>,
    stop: Arc<AtomicBool>,
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let names: Vec<(String, i32)> = partitions.elements().iter().map(|p| (p.topic().to_owned(), p.partition())).collect();
                let starts = (self.starts)(&names).and_then(|starts| {
                    starts.iter().try_for_each(|((topic, partition), start)| is_there(consumer, topic, *partition, *start))?;
                    for (topic, partition) in &names {
                        let offset = starts.get(&(topic.clone(), *partition)).map_or(Offset::Beginning, |offset| Offset::Offset(*offset));
                        partitions.set_partition_offset(topic, *partition, offset).at(|| format!("assigning {topic}/{partition}"))?;
                    }
                    consumer.assign(partitions).at(|| "assigning partitions".into())?;
                    Ok(starts)
                });
                let event = match starts {
                    Ok(starts) => Event::Assigned(names.into_iter().map(|name| (name.clone(), starts.get(&name).copied().unwrap_or(0))).collect()),
                    Err(error) => Event::Ended(Some(error)),
                };
                let _ = self.events.send(event);
            }
            _ => {
                let (done, wait) = std::sync::mpsc::sync_channel(1);
                // While closing, everything is committed already and nobody answers.
                if !self.stop.load(Ordering::Relaxed) && self.events.send(Event::Revoked(done)).is_ok() {
                    // The next owner starts where this one committed.
                    let _ = wait.recv_timeout(Duration::from_secs(30));
                }
                let _ = consumer.unassign();
            }
        }
    }
}

/// Refuses to start behind the end of a partition: a topic that was deleted and made again has new messages at offsets that the
/// archive believes to have, and to skip them would be a silence that nobody notices.
fn is_there(consumer: &BaseConsumer<Context>, topic: &str, partition: i32, start: i64) -> Result<()> {
    match consumer.fetch_watermarks(topic, partition, Duration::from_secs(5)) {
        Ok((_, end)) if start > end => Err(Error::conflict(format!(
            "{topic}/{partition}: the archive has read up to offset {start}, but the topic ends at {end}: it was emptied or made again, and its messages would be taken for ones already read. Read it under another name, or begin a new archive"
        ))),
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, topic, partition, "the broker does not say where the partition ends: not checked against the archive");
            Ok(())
        }
    }
}

/// librdkafka settings: the user's, over defaults that this program depends on.
///
/// # Errors
/// A setting that is keyfuse's own business.
pub fn client_config(user: &BTreeMap<String, String>) -> Result<ClientConfig> {
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("group.id", "keyfuse"),
        ("auto.offset.reset", "earliest"),
        ("fetch.queue.backoff.ms", "10"),
        ("fetch.wait.max.ms", "50"),
        ("check.crcs", "true"),
        ("partition.assignment.strategy", "range"),
        // A topic or partition that is made later is read after this at the latest; librdkafka's five minutes are five minutes of blindness.
        ("topic.metadata.refresh.interval.ms", "15000"),
        ("queued.max.messages.kbytes", "65536"),
    ] {
        config.set(name, value);
    }
    for (name, value) in user {
        if matches!(name.as_str(), "enable.auto.commit" | "enable.auto.offset.store" | "enable.partition.eof") {
            return Err(Error::user(format!("[kafka] {name}: keyfuse decides when offsets are committed; remove it")));
        }
        config.set(name, value);
    }
    config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    Ok(config)
}

/// A running consumer.
pub struct KafkaSource {
    consumer: Arc<BaseConsumer<Context>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl KafkaSource {
    /// Subscribes and starts to fetch; events go to `events`, which bounds how far fetching runs ahead.
    ///
    /// # Errors
    /// Settings that librdkafka refuses.
    pub fn start(config: &ClientConfig, topics: &[String], starts: StartOffsets, events: SyncSender<Event>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let context = Context { starts, events: events.clone(), stop: Arc::clone(&stop) };
        let consumer: BaseConsumer<Context> = config.create_with_context(context).user_at(|| "Kafka consumer settings".into())?;
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&names).user_at(|| "subscribing".into())?;
        let consumer = Arc::new(consumer);
        let thread = {
            let (consumer, stop) = (Arc::clone(&consumer), Arc::clone(&stop));
            std::thread::Builder::new().name("kafka".into()).spawn(move || fetch(&consumer, &stop, &events)).at(|| "starting the Kafka thread".into())?
        };
        Ok(Self { consumer, stop, thread: Some(thread) })
    }

    /// Tells the group how far the archive reaches; advisory.
    pub fn commit(&self, positions: &BTreeMap<(String, i32), i64>, wait: bool) {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), offset) in positions {
            let _ = list.add_partition_offset(topic, *partition, Offset::Offset(*offset));
        }
        if let Err(error) = self.consumer.commit(&list, if wait { CommitMode::Sync } else { CommitMode::Async }) {
            tracing::debug!(%error, "committing offsets to the group; the archive has them");
        }
    }

    /// Asks the broker questions from other threads.
    pub fn asker(&self) -> Asker {
        Asker(Arc::clone(&self.consumer))
    }

    /// Stops fetching; events already sent stay in the channel.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for the thread to end.
    pub fn join(mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A handle to ask the broker with; blocks.
pub struct Asker(Arc<BaseConsumer<Context>>);

impl Asker {
    /// Messages between each position and the end of its partition.
    pub fn lag(&self, positions: &BTreeMap<(String, i32), i64>) -> HashMap<(String, i32), i64> {
        let ends = positions.iter().filter_map(|((topic, partition), offset)| {
            // What retention has already removed is not waiting.
            let (first, end) = self.0.fetch_watermarks(topic, *partition, Duration::from_millis(500)).ok()?;
            Some(((topic.clone(), *partition), (end - (*offset).max(first)).max(0)))
        });
        ends.collect()
    }
}

/// One message of a compacted topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed {
    pub key: Vec<u8>,
    /// None is a tombstone: what the key stood for is no more.
    pub value: Option<Vec<u8>>,
    pub at: Micros,
    /// `topic/partition@offset`, to name it in errors.
    pub place: String,
}

/// Everything that a compacted topic holds now, from its beginning to its end, in order of time.
///
/// # Errors
/// The broker does not answer within half a minute.
pub fn read_all(config: &ClientConfig, topic: &str) -> Result<Vec<Keyed>> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let place = || format!("reading the topic {topic}");
    // A reader of its own: it belongs to no group and commits nothing.
    let mut config = config.clone();
    config.set("group.id", "keyfuse-reader").set("enable.auto.commit", "false").set("auto.offset.reset", "earliest").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().at(place)?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).at(place)?;
    if let Some(error) = metadata.topics().iter().find_map(|topic| topic.error()) {
        return Err(Error::environment(format!("{}: {:?}", place(), KafkaError::MetadataFetch(error.into()))));
    }
    let partitions: Vec<i32> = metadata.topics().iter().flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect();
    if partitions.is_empty() {
        return Err(Error::environment(format!("{}: it has no partitions", place())));
    }
    let mut left: HashMap<i32, i64> = HashMap::new();
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE).at(place)?;
        if high > low {
            left.insert(partition, high);
            assignment.add_partition_offset(topic, partition, Offset::Offset(low)).at(place)?;
        }
    }
    let mut all = Vec::new();
    if left.is_empty() {
        return Ok(all);
    }
    consumer.assign(&assignment).at(place)?;
    let started = Instant::now();
    while !left.is_empty() {
        if started.elapsed() > PATIENCE {
            return Err(Error::environment(format!("{}: its end was not reached within {} s", place(), PATIENCE.as_secs())));
        }
        let message = match consumer.poll(Duration::from_millis(200)) {
            None => continue,
            // Compaction and transactions leave offsets without a message: the broker says where the end is.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                left.remove(&partition);
                continue;
            }
            Some(message) => message.at(place)?,
        };
        let at = message.timestamp().to_millis().map_or(0, |millis| millis * 1000);
        let place = format!("{topic}/{}@{}", message.partition(), message.offset());
        all.push(Keyed { key: message.key().unwrap_or_default().to_vec(), value: message.payload().map(<[u8]>::to_vec), at, place });
        if left.get(&message.partition()).is_some_and(|high| message.offset() + 1 >= *high) {
            left.remove(&message.partition());
        }
    }
    all.sort_by_key(|message| message.at);
    Ok(all)
}

fn fetch(consumer: &BaseConsumer<Context>, stop: &AtomicBool, events: &SyncSender<Event>) {
    let mut topics: HashMap<String, Arc<str>> = HashMap::new();
    let mut told = None;
    while !stop.load(Ordering::Relaxed) {
        let mut poll = Poll { messages: Vec::new(), received_at: 0 };
        let (mut bytes, started) = (0, Instant::now());
        while poll.messages.len() < POLL_MESSAGES && bytes < POLL_BYTES && (poll.messages.is_empty() || started.elapsed() < POLL_TIME) {
            let wait = if poll.messages.is_empty() { Duration::from_millis(100) } else { Duration::ZERO };
            match consumer.poll(wait) {
                Some(Ok(message)) => {
                    if poll.messages.is_empty() {
                        poll.received_at = clock::now();
                    }
                    let topic = topics.entry(message.topic().to_owned()).or_insert_with(|| message.topic().into());
                    let value = message.payload().unwrap_or_default().to_vec();
                    bytes += value.len();
                    let append_time = match message.timestamp() {
                        Timestamp::CreateTime(millis) | Timestamp::LogAppendTime(millis) if millis > 0 => Some(millis * 1000),
                        _ => None,
                    };
                    let by_broker = matches!(message.timestamp(), Timestamp::LogAppendTime(_));
                    let (partition, offset) = (message.partition(), message.offset());
                    poll.messages.push(Fetched { topic: Arc::clone(topic), partition, offset, append_time, by_broker, value });
                }
                Some(Err(error)) => {
                    // The client repeats itself while a broker is away: once in ten seconds is enough to know.
                    if told.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(10)) {
                        told = Some(Instant::now());
                        tracing::warn!(%error, "Kafka");
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
                None => break,
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        if !poll.messages.is_empty() && events.send(Event::Poll(poll)).is_err() {
            return;
        }
    }
    let _ = events.send(Event::Ended(None));
}
