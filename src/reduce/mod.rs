//! From complete buckets to the step's gradient, while autograd still computes the next ones.
//!
//! A bucket whose last gradient is in moves to the communication thread, which reduces one bucket after the other in
//! the order of the layout: the same order on every rank, whatever the timing. The training thread collects them at
//! one point, before the optimizer. Where only one thread may communicate, or `parallel.overlap` is off, the same
//! work is done at that point instead: the bits cannot tell.
//!
//! On a GPU each thread's work goes to a stream of its own, and a call returns before its work is done. A job carries a
//! mark on the training thread's stream, which the other stream waits for before it touches the bucket, and comes back with
//! one for the way back. No tensor is made on one stream and freed while the other may still use it: what crosses over are
//! buckets, which live as long as the session.

mod scheduling;
mod worker;

use std::cell::RefCell;

use lockstep_record::BLOCK_ELEMENTS;

use crate::comm::{Comm, CommError};
use crate::grad::accumulate::{Accumulator, PartialSums};
use crate::grad::flat::Flat;
use crate::metrics::{BucketPrints, Pen};
use crate::mutate::{Mutation, active_in, strikes};
use crate::optim::Update;
use crate::torch::{Mark, TorchError};
use worker::{Desk, Done, Finished, Job, Summary, Work, Worker};

pub use worker::{Cost, Tools};

/// The update of a bucket that need not wait for the norm of the whole gradient.
pub struct EarlyUpdate {
    pub update: Update,
    pub parameters: Flat,
    /// Where the step's digests are recorded.
    pub pen: Option<Pen>,
}

/// What the training thread learns of the buckets, by bucket.
#[derive(Default)]
pub struct Reduced {
    /// Over this rank's shard.
    pub square_sums: Vec<Vec<f64>>,
    /// Where a bucket was recorded around its update.
    pub prints: Vec<Option<BucketPrints>>,
}

/// Reduces buckets and publishes parameters.
pub struct Reducer<'a> {
    way: Way<'a>,
    /// Complete buckets whose turn has not come, and how many have gone.
    complete: Vec<bool>,
    gone: usize,
    /// Jobs that are about to go.
    ready: Vec<Job>,
    /// The planted bug: buckets go in the opposite order.
    reverses: bool,
    /// Another one: a bucket is overwritten.
    overwrites: bool,
    /// Whether the strategy brings updated parameters to the other ranks.
    publishes: bool,
    /// What reduced gradients are multiplied by.
    unscale: f32,
    state: RefCell<State>,
}

/// Who does the work.
enum Way<'a> {
    /// The training thread, when it comes to wait.
    Inline { comm: &'a dyn Comm, desk: RefCell<Desk>, later: Vec<Job> },
    /// The communication thread.
    Thread(Worker),
}

/// What has come back.
#[derive(Default)]
struct State {
    reduced: Vec<Option<(PartialSums, Summary)>>,
    /// Buckets whose parameters are under way.
    publishing: Vec<bool>,
    cost: Cost,
}

impl<'a> Reducer<'a> {
    /// `comm` is the training thread's; with `overlap` a second one is made for the communication thread, if it can
    /// be. All ranks call it.
    pub fn new(comm: &'a dyn Comm, tools: Tools, overlap: bool) -> Result<Self, CommError> {
        let (buckets, publishes) = (tools.buckets(), tools.strategy.publishes());
        let strikes = |mutation| strikes(mutation, comm.rank(), comm.size());
        let (reverses, overwrites) = (strikes(Mutation::BucketOrder), strikes(Mutation::OverwrittenBucket));
        let other = if overlap { comm.for_another_thread()? } else { None };
        let way = match other {
            Some(other) => Way::Thread(Worker::start(other, tools)?),
            None => Way::Inline { comm, desk: RefCell::new(Desk::new(tools)), later: Vec::new() },
        };
        let state = State { publishing: vec![false; buckets], ..State::default() };
        Ok(Self {
            way,
            complete: vec![false; buckets],
            gone: 0,
            ready: Vec::new(),
            reverses,
            overwrites,
            publishes,
            unscale: 1.0,
            state: RefCell::new(state),
        })
    }

    /// Whether a thread of its own communicates.
    pub fn overlaps(&self) -> bool {
        matches!(self.way, Way::Thread(_))
    }

    /// From now on reduced gradients are multiplied by this: 1 over the loss scale, before anything looks at them.
    pub fn unscale_by(&mut self, factor: f32) {
        self.unscale = factor;
    }

    /// A bucket has all gradients of this rank's last micro-batch. It goes, and those that waited for it, when all
    /// earlier ones have gone. What `update` returns for a bucket is applied as soon as it is reduced: backward has no
    /// more use for its parameters then.
    pub fn complete(
        &mut self,
        bucket: usize,
        accumulator: &mut Accumulator,
        update: &dyn Fn(usize) -> Option<EarlyUpdate>,
    ) -> Result<(), TorchError> {
        self.complete[bucket] = true;
        while self.complete.get(self.gone) == Some(&true) {
            let bucket = self.gone;
            let mut sums = accumulator.take(bucket);
            self.overwrite(bucket, &mut sums)?;
            let ready = Mark::here(sums.home().device())?;
            let work =
                Work::Reduce { bucket, sums, unscale: self.unscale, early: update(bucket).map(Box::new) };
            self.gone += 1;
            self.ready.push(Job { work, ready });
            if !self.reverses {
                self.submit();
            } else if self.gone == self.complete.len() {
                self.ready.reverse();
                self.submit();
            }
        }
        Ok(())
    }

    /// The planted bug: a buffer is used again while it is being sent.
    fn overwrite(&self, bucket: usize, sums: &mut PartialSums) -> Result<(), TorchError> {
        if self.overwrites && bucket == 0 && active_in(Mutation::OverwrittenBucket, 3) {
            sums.held_mut()[0].overwrite(0..BLOCK_ELEMENTS, |values| values.fill(0.0))?;
        }
        Ok(())
    }

    fn submit(&mut self) {
        for job in self.ready.drain(..) {
            match &mut self.way {
                Way::Thread(worker) => worker.send(job),
                Way::Inline { later, .. } => later.push(job),
            }
        }
    }

    /// Waits until every bucket holds the step's gradient, at least over the owned part.
    ///
    /// # Panics
    /// If a bucket is not complete.
    pub fn finish(&mut self, accumulator: &mut Accumulator) -> Result<Reduced, CommError> {
        let buckets = self.complete.len();
        assert_eq!(self.gone, buckets, "a bucket is not complete");
        self.complete.fill(false);
        self.gone = 0;
        self.state.borrow_mut().reduced.resize_with(buckets, || None);
        if let Way::Inline { comm, desk, later } = &mut self.way {
            let desk = desk.get_mut();
            let done: Result<Vec<_>, _> = later.drain(..).map(|job| desk.execute(*comm, job)).collect();
            done?.into_iter().try_for_each(|finished| self.book(finished))?;
        }
        for bucket in 0..buckets {
            while self.state.borrow().reduced[bucket].is_none() {
                self.receive()?;
            }
        }
        let reduced = std::mem::take(&mut self.state.borrow_mut().reduced);
        let mut all = Reduced::default();
        for (bucket, (sums, Summary { square_sums, prints })) in reduced.into_iter().flatten().enumerate() {
            accumulator.put_back(bucket, sums);
            all.square_sums.push(square_sums);
            all.prints.push(prints);
        }
        Ok(all)
    }

    /// Sends this rank's part of a bucket's new parameters on its way to the others, if they need it. `parameters` is not
    /// to be touched before [`Reducer::arrive`].
    pub fn publish(&self, bucket: usize, parameters: &Flat) -> Result<(), CommError> {
        if !self.publishes {
            return Ok(());
        }
        self.state.borrow_mut().publishing[bucket] = true;
        let ready = Mark::here(parameters.home().device())?;
        let job = Job { work: Work::Publish { bucket, parameters: parameters.same_memory() }, ready };
        match &self.way {
            Way::Inline { comm, desk, .. } => self.book(desk.borrow_mut().execute(*comm, job)?)?,
            Way::Thread(worker) => worker.send(job),
        }
        Ok(())
    }

    /// Waits until a bucket's parameters are those of the last update. Frozen ones always are.
    pub fn arrive(&self, bucket: usize) -> Result<(), CommError> {
        while self.state.borrow().publishing.get(bucket) == Some(&true) {
            self.receive()?;
        }
        Ok(())
    }

    /// The same for all buckets.
    pub fn arrive_all(&self) -> Result<(), CommError> {
        (0..self.complete.len()).try_for_each(|bucket| self.arrive(bucket))
    }

    /// Of all communication since the last call.
    pub fn take_cost(&self) -> Cost {
        std::mem::take(&mut self.state.borrow_mut().cost)
    }

    fn receive(&self) -> Result<(), CommError> {
        match &self.way {
            Way::Thread(worker) => self.book(worker.receive()?)?,
            Way::Inline { .. } => unreachable!("inline work is booked when it is done"),
        }
        Ok(())
    }

    /// What this thread computes from now on comes after the job.
    fn book(&self, Finished { done, cost, mark }: Finished) -> Result<(), TorchError> {
        mark.wait()?;
        let mut state = self.state.borrow_mut();
        state.cost.seconds += cost.seconds;
        state.cost.bytes += cost.bytes;
        match done {
            Done::Reduced { bucket, sums, summary } => state.reduced[bucket] = Some((sums, summary)),
            Done::Published { bucket } => state.publishing[bucket] = false,
        }
        Ok(())
    }
}
