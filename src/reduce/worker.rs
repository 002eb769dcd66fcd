//! The communication thread and what it does with one bucket.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use tch::Device;

use super::EarlyUpdate;
use crate::comm::{Comm, CommError};
use crate::grad::accumulate::PartialSums;
use crate::grad::flat::Flat;
use crate::grad::home::Home;
use crate::metrics::{BucketPrints, Pen};
use crate::mutate::{Mutation, active};
use crate::strategy::{Strategy, square_sums};
use crate::torch::{Mark, Stream};
use crate::trace::{About, Category, Trace};

/// What the work on a bucket needs.
pub struct Tools {
    pub strategy: Box<dyn Strategy>,
    /// This rank's part of each bucket that is trained.
    pub shards: Vec<Range<usize>>,
    /// Where the buckets lie.
    pub home: Home,
    /// Threads of libtorch and its libraries: they are set for each thread apart.
    pub threads: i32,
    pub trace: Trace,
}

impl Tools {
    pub fn buckets(&self) -> usize {
        self.shards.len()
    }
}

/// What the training thread hands over.
pub struct Job {
    pub work: Work,
    /// Behind everything that has been done to the bucket.
    pub ready: Mark,
}

pub enum Work {
    /// The sum is multiplied by `unscale`; with an update, that follows at once.
    Reduce {
        bucket: usize,
        sums: PartialSums,
        unscale: f32,
        early: Option<Box<EarlyUpdate>>,
    },
    Publish {
        bucket: usize,
        parameters: Flat,
    },
}

/// What it gets back.
pub struct Finished {
    pub done: Done,
    pub cost: Cost,
    /// Behind everything that has been done to the bucket.
    pub mark: Mark,
}

pub enum Done {
    Reduced { bucket: usize, sums: PartialSums, summary: Summary },
    Published { bucket: usize },
}

/// What there is to know of a reduced bucket.
pub struct Summary {
    /// Over this rank's shard.
    pub square_sums: Vec<f64>,
    /// If it was recorded around its update.
    pub prints: Option<BucketPrints>,
}

/// What communication took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// On whichever thread.
    pub seconds: f64,
    /// Sent by this rank.
    pub bytes: u64,
}

/// Does one job after the other.
pub struct Desk(Tools);

impl Desk {
    pub fn new(tools: Tools) -> Self {
        Self(tools)
    }

    /// On this thread's current stream.
    pub fn execute(&mut self, comm: &dyn Comm, job: Job) -> Result<Finished, CommError> {
        let sent = comm.bytes_sent();
        job.ready.wait()?;
        let (done, seconds) = match job.work {
            Work::Reduce { bucket, sums, unscale, early } => {
                self.reduce(comm, bucket, (sums, unscale), early)
            }
            Work::Publish { bucket, parameters } => self.publish(comm, bucket, parameters),
        }?;
        let mark = Mark::here(self.0.home.device())?;
        Ok(Finished { done, cost: Cost { seconds, bytes: comm.bytes_sent() - sent }, mark })
    }

    fn reduce(
        &mut self,
        comm: &dyn Comm,
        bucket: usize,
        (mut sums, unscale): (PartialSums, f32),
        early: Option<Box<EarlyUpdate>>,
    ) -> Result<(Done, f64), CommError> {
        let Tools { strategy, shards, trace, .. } = &mut self.0;
        let about = About::bucket(bucket, 4 * sums.gradient().len());
        comm.at_bucket(bucket);
        let started = Instant::now();
        let span = trace.communication(Category::Communication, "reduce", about);
        strategy.reduce(comm, bucket, &mut sums)?;
        drop(span);
        let seconds = started.elapsed().as_secs_f64();
        let scaled =
            active(Mutation::ClipBeforeUnscale).then(|| square_sums(sums.gradient(), &shards[bucket]));
        // All of it: under DDP every rank has the whole gradient.
        let whole = 0..sums.gradient().len();
        sums.gradient_mut().scale(&whole, unscale)?;
        let square_sums = scaled.unwrap_or_else(|| square_sums(sums.gradient(), &shards[bucket]))?;
        let mut prints = None;
        if let Some(early) = early {
            let EarlyUpdate { update, mut parameters, pen } = *early;
            let _span = trace.communication(Category::Optimizer, "update", about);
            let update = |gradient: &mut Flat| update.apply(&mut parameters, gradient);
            prints = Pen::around(pen, sums.gradient_mut(), update)?;
        }
        Ok((Done::Reduced { bucket, sums, summary: Summary { square_sums, prints } }, seconds))
    }

    fn publish(
        &mut self,
        comm: &dyn Comm,
        bucket: usize,
        mut parameters: Flat,
    ) -> Result<(Done, f64), CommError> {
        let Tools { strategy, trace, .. } = &mut self.0;
        let started = Instant::now();
        comm.at_bucket(bucket);
        let about = About::bucket(bucket, 4 * parameters.len());
        let _span = trace.communication(Category::Communication, "gather", about);
        strategy.publish(comm, bucket, &mut parameters)?;
        Ok((Done::Published { bucket }, started.elapsed().as_secs_f64()))
    }
}

/// A thread with a desk and a communicator of its own, and on a GPU with a stream.
pub struct Worker {
    jobs: Option<Sender<Job>>,
    done: Receiver<Result<Finished, CommError>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub fn start(comm: Box<dyn Comm + Send>, tools: Tools) -> Result<Self, CommError> {
        let (jobs, inbox) = channel::<Job>();
        let stream = match tools.home.device() {
            Device::Cuda(device) => Some(Stream::of_high_priority(device)?),
            _ => None,
        };
        let mut desk = Desk::new(tools);
        let (outbox, done) = channel();
        let work = move || {
            tch::set_num_threads(desk.0.threads);
            super::scheduling::ask_for_short_turns();
            for job in inbox {
                let execute = || desk.execute(&*comm, job);
                let result = match &stream {
                    None => execute(),
                    Some(stream) => stream.run(execute),
                };
                let failed = result.is_err();
                // After an error the others cannot be talked to, and a training thread that is gone asks for nothing.
                if outbox.send(result).is_err() || failed {
                    return;
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("communication".into()).spawn(work).map_err(|error| {
                CommError::Failed {
                    operation: "start of the communication thread",
                    reason: error.to_string(),
                }
            })?;
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread) })
    }

    /// A thread that has ended says why when its results are asked for.
    pub fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }

    /// The next result. The watchdog ends a wait that is too long, since the thread then waits in a collective.
    pub fn receive(&self) -> Result<Finished, CommError> {
        self.done.recv().unwrap_or_else(|_| {
            let reason = "it ended before its work was done".into();
            Err(CommError::Failed { operation: "communication thread", reason })
        })
    }
}

impl Drop for Worker {
    /// Waits for the thread, unless it is in the middle of something: then this rank is about to end all ranks, and
    /// what the thread waits for may never come.
    fn drop(&mut self) {
        self.jobs = None;
        let Some(thread) = self.thread.take() else { return };
        for _ in 0..100 {
            if thread.is_finished() {
                let _ = thread.join();
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}
