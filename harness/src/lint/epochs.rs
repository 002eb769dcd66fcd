//! How samples follow one another through the epochs.

use std::collections::HashSet;

use super::facts::{Context, File, StepFacts};
use super::finding::Finding;

/// Sample ids of an epoch that are remembered: what comes after them is not looked at.
const IDS_MAX: usize = 1 << 24;
/// Findings that are kept.
const FINDINGS_MAX: usize = 1000;

/// Reads the sample ids of all steps in order.
#[derive(Debug, Default)]
pub struct Epochs {
    /// Samples of an epoch where the epoch follows from the position, as in this project's own sampler. Elsewhere the
    /// metrics' `epoch` tells.
    length: Option<u64>,
    current: Epoch,
    earlier: Option<Epoch>,
    /// Ids that were checked.
    pub ids: u64,
    /// A sample that comes a second time in an epoch.
    pub repeats: Vec<Finding>,
    /// Epochs that were compared with the one before.
    pub orders: u64,
    /// An epoch in the order of the one before.
    pub same_orders: Vec<Finding>,
}

#[derive(Debug, Default)]
struct Epoch {
    number: u64,
    world: u32,
    /// Where it was last seen.
    step: u64,
    line: u64,
    count: u64,
    /// Of the ids in their order.
    hash: u64,
    ids: HashSet<u64>,
    repeats: Vec<Finding>,
}

impl Epoch {
    fn visit(&mut self, id: u64, finding: impl FnOnce() -> Finding) {
        self.count += 1;
        // Enough to tell orders apart: nobody forges one.
        self.hash = (self.hash ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        if self.ids.len() < IDS_MAX && !self.ids.insert(id) && self.repeats.len() < FINDINGS_MAX {
            self.repeats.push(finding());
        }
    }
}

impl Epochs {
    pub fn new(context: &Context) -> Self {
        let known = context.is_ours().then_some(context.manifest.data.train_samples);
        let length = known.filter(|&samples| samples > 0 && context.samples_per_step().is_some());
        Self { length, ..Self::default() }
    }

    pub fn note(&mut self, context: &Context, step: &StepFacts) {
        let Some(line) = &step.samples else { return };
        let count = line.micro_batches.len();
        let before = step.step.saturating_sub(1).saturating_mul(context.samples_per_step().unwrap_or(0));
        let ids = line
            .micro_batches
            .iter()
            .enumerate()
            .flat_map(|(index, ids)| ids.iter().map(move |&id| (index, id)));
        for ((index, id), offset) in ids.zip(0u64..) {
            let epoch = match self.length {
                Some(length) => before.saturating_add(offset) / length,
                None => step.metrics.as_ref().map_or(0, |line| line.epoch),
            };
            if epoch != self.current.number && self.current.count > 0 {
                self.turn();
            }
            let current = &mut self.current;
            (current.number, current.world) = (epoch, context.world(step.step));
            (current.step, current.line) = (step.step, line.line);
            current.visit(id, || {
                let rank = context.rank_of(step.step, index, count);
                Finding::new(
                    File::Samples.name(),
                    Some(line.line),
                    format!("sample {id} comes a second time in epoch {epoch}"),
                )
                .at(step.step)
                .in_micro_batch(u32::try_from(index).ok())
                .on(vec![(rank, rank)])
            });
        }
    }

    /// An epoch has ended.
    fn turn(&mut self) {
        let finished = std::mem::take(&mut self.current);
        self.judge(finished, true);
    }

    /// The run has ended, maybe within an epoch.
    pub fn close(&mut self) {
        let last = std::mem::take(&mut self.current);
        let counted = last.number > 0;
        self.judge(last, counted);
    }

    /// `counted`: whether the trainer does count epochs. One that never gets beyond epoch 0 may just not say.
    fn judge(&mut self, mut epoch: Epoch, counted: bool) {
        // Another trainer may repeat a few samples at the end of an epoch, so that all ranks get as many.
        let allowed = if self.length.is_some() { 0 } else { epoch.world.saturating_sub(1) as usize };
        if self.length.is_some() || counted {
            self.ids += epoch.count;
            if epoch.repeats.len() > allowed && self.repeats.len() < FINDINGS_MAX {
                self.repeats.append(&mut epoch.repeats);
            }
        }
        if let Some(earlier) =
            self.earlier.as_ref().filter(|earlier| earlier.count == epoch.count && epoch.count > 1)
        {
            self.orders += 1;
            if earlier.hash == epoch.hash && self.same_orders.len() < FINDINGS_MAX {
                let message = format!(
                    "epoch {} has its {} samples in the order of the one before",
                    epoch.number, epoch.count
                );
                self.same_orders
                    .push(Finding::new(File::Samples.name(), Some(epoch.line), message).at(epoch.step));
            }
        }
        epoch.ids = HashSet::new();
        self.earlier = Some(epoch);
    }
}
