//! Planted bugs: each breaks one thing that equality rests on, in the code that ships, so that tests can see the
//! equality fail. Only a build with the feature `mutations` has them; in any other, [`active`] is always false.

use std::sync::OnceLock;

/// What is broken. `lockstep train --mutate NAME` turns one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutation {
    /// Partial sums are added in the order of the ranks instead of the tree's.
    RankOrder,
    /// Dropout masks are keyed by the rank instead of the micro-batch.
    DropoutByRank,
    /// Each rank's share of the norm is summed in single precision as one piece instead of by blocks.
    NormByShard,
    /// Shards end where an even split of the elements falls instead of on block boundaries.
    ShardAlignment,
    /// The last rank's copy of one parameter is off by one unit in the last place.
    OneRanksParameter,
    /// The last rank trains one sample other than the sampler's.
    OneSampleId,
    /// One micro-batch's gradient is NaN in steps 3 and 4.
    NanGradient,
    /// The same from step 3 on.
    NanGradients,
    /// A resume leaves the optimizer's state at zero.
    ForgetOptimizer,
    /// The last rank reduces the buckets in the opposite order.
    BucketOrder,
    /// The last rank gathers a gradient as if one element more belonged to the first rank, and one less to itself.
    GatherLength,
    /// The last rank's training thread loops for ever in step 3.
    EndlessLoop,
    /// What compression leaves out of a gradient is lost instead of being added to the next one.
    ForgetResiduals,
    /// One tensor's reduced gradient is a millionth too large.
    ScaledTensor,
    /// In step 4 one bucket brings the gradient of step 3 once more.
    StaleBucket,
    /// The loss is divided by one target too many.
    LossOffByOne,
}

static ACTIVE: OnceLock<Mutation> = OnceLock::new();

/// Turns on one mutation for the life of the process.
pub fn activate(mutation: Mutation) {
    let _ = ACTIVE.set(mutation);
}

/// Whether a mutation that strikes the last rank of several is on, and this is that rank.
pub fn strikes(mutation: Mutation, rank: usize, world_size: usize) -> bool {
    active(mutation) && world_size > 1 && rank + 1 == world_size
}

/// Whether this mutation is on: always false without the feature, so the compiler removes what it guards.
pub fn active(mutation: Mutation) -> bool {
    cfg!(feature = "mutations") && ACTIVE.get() == Some(&mutation)
}
