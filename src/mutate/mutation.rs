//! The list of planted bugs. `harness/plans/zoo.yaml` has an entry for each, in the same groups.

/// What is broken. `lockstep train --mutate NAME` turns one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutation {
    // Reduction
    /// Partial sums are added in the order of the ranks instead of the tree's.
    RankOrder,
    /// A rank's micro-batches are added one after the other instead of along the tree.
    SequentialLeaves,
    /// The last addition of the tree is left out: half of the micro-batches are missing.
    HalfTheTree,
    /// Partial sums travel in 16 bits.
    Bf16Travel,
    /// In step 3 the last rank receives zeros instead of the others' partial sums.
    LostMessage,
    /// In shared memory, a rank takes its neighbours' partial sums one element off.
    NeighboursOffset,
    /// The finished sum is left where it was formed, which is not where all ranks but the first look for it.
    ResultNotCopied,
    /// Gradients are not exchanged at all.
    NoReduction,
    /// In step 3 gradients are not exchanged, as if a `no_sync` were left on.
    NoSyncLeftOn,
    /// The step's gradient is a factor of the world size too large.
    GradientSum,
    /// The last rank goes on with its own sum of the first bucket instead of everybody's.
    OneRankUnreduced,
    /// Each rank clips its own sum before the exchange instead of the step's gradient after it.
    ClipBeforeReduction,
    /// A rank's shard of the gradient is divided by two: by the size of the wrong group.
    WrongGroupSize,
    /// A rank's shard of the gradient is written one element off.
    ShiftedShard,
    /// The second bucket is not exchanged.
    BucketNotReduced,
    /// In step 3 a block of the last rank's first bucket is overwritten before it is sent.
    OverwrittenBucket,
    /// One tensor's reduced gradient is a millionth too large.
    ScaledTensor,
    /// In step 4 one bucket brings the gradient of step 3 once more.
    StaleBucket,

    // Accumulation
    /// Only a rank's first micro-batch counts.
    FirstLeafOnly,
    /// Only a rank's last micro-batch counts.
    LastLeafOnly,
    /// A rank's last micro-batch misses the exchange.
    LastLeafMissing,
    /// The gradient of the first parameter, the largest, is kept of a rank's first micro-batch only.
    LargeGradientLost,
    /// All of a rank's gradients but the first are halved: the sum is scaled at each micro-batch.
    RescaledEachTime,
    /// Buffers are not zeroed between steps.
    ZeroGradSkipped,
    /// Gradients are divided by a loss scale that was never applied.
    UnscaledTwice,
    /// From step 3 on the last rank's gradient of one parameter is zero: its hook is gone.
    LostHook,

    // Loss
    /// A rank's loss is the mean over its own tokens, whatever share of the global batch they are.
    MeanPerRank,
    /// The loss is divided by the rank's own tokens and never by the number of ranks.
    LocalMean,
    /// The loss is divided by one target too many.
    LossOffByOne,
    /// Blanks do not count as targets, but the divisor counts them.
    IgnoredTargets,
    /// Of two losses, the second is the mean over each rank's own targets.
    ActionsPerRank,
    /// A step's loss is the mean of its micro-batches' means, whatever their numbers of targets.
    MeanOfMeans,
    /// Two losses are divided by the number of targets of both together.
    OneCount,
    /// The recorded loss is that of the first micro-batch alone.
    LossOfOneMicroBatch,
    /// The validation loss is divided by the number of accumulated micro-batches as well.
    ValidationScaled,

    // Norm and clipping
    /// Each rank's share of the norm is summed in single precision as one piece instead of by blocks.
    NormByShard,
    /// A rank's norm is that of its own shard.
    NormOfOwnShard,
    /// Sums of squares are reduced twice.
    NormReducedTwice,
    /// The norm does not count biases and norms' weights.
    BiasesNotCounted,
    /// Small gradients are scaled up to the limit.
    ClipAboveOne,
    /// The limit is applied to the largest tensor's norm instead of the global one.
    ClipByLargestTensor,
    /// The last rank does not clip.
    ClipOnSomeRanks,
    /// The gradient is clipped twice.
    ClippedTwice,
    /// The first bucket is not clipped.
    ClipSkipsABucket,
    /// One micro-batch's gradient is NaN in steps 3 and 4.
    NanGradient,
    /// The same from step 3 on.
    NanGradients,

    // Random numbers
    /// Dropout masks are keyed by the rank instead of the micro-batch.
    DropoutByRank,
    /// All micro-batches of a step have the same dropout masks.
    DropoutSameMask,
    /// All steps have the same dropout masks.
    DropoutSameStep,
    /// After a resume, dropout begins again with the masks of step 1.
    DropoutRestarts,
    /// What dropout keeps is not scaled up.
    DropoutNotScaled,
    /// Dropout is on in the evaluation.
    ValidationDropout,
    /// All parameters start with the same random numbers.
    SameWeights,
    /// The broadcast of one bucket's first values does not reach the last rank.
    BroadcastLost,
    /// The same, and nobody checks.
    UnequalStart,
    /// Images are augmented in the same way in every epoch.
    AugmentWithoutEpoch,
    /// The noise of flow matching is keyed by the rank as well.
    FlowNoiseByRank,

    // Data
    /// The last rank trains one sample other than the sampler's.
    OneSampleId,
    /// All ranks train the first ones' micro-batches.
    RanksOverlap,
    /// The ranks' micro-batches are handed out in the opposite order.
    SwappedRanks,
    /// Every epoch has the order of the first one.
    EpochNotSet,
    /// The order of samples does not depend on the seed.
    SeedNotUsed,
    /// What is left of an epoch after its last whole step is dropped.
    DropLast,
    /// After a resume, samples begin again with those of step 1.
    SamplerRestarts,
    /// After a resume, as many steps' samples are passed over once more.
    SkipsTwice,
    /// Targets are the inputs themselves instead of the next tokens.
    TargetsNotShifted,
    /// In step 3 one micro-batch is of the validation part.
    TrainsOnValidation,
    /// After a resume, samples are read one token late.
    ShardNotReloaded,

    // Schedule
    /// The rate of step 1 stays.
    ScheduleNotStepped,
    /// The schedule is stepped twice a step.
    ScheduleTwice,
    /// The warm-up begins at zero instead of at its first step.
    WarmupOffByOne,
    /// After a resume, the schedule is one step ahead.
    ScheduleAheadOnResume,
    /// After a resume, the schedule begins again.
    ScheduleRestarts,
    /// After a resume, the rate is the configuration's, without a schedule.
    RateOverridden,
    /// The last rank updates with another rate.
    RateOnOneRank,
    /// The run ends after half of its steps.
    StepsHalved,

    // Optimizer
    /// Biases and norms decay, too.
    DecayOnEverything,
    /// The two betas are exchanged.
    BetasSwapped,
    /// Averages are not corrected for their start from zero.
    NoBiasCorrection,
    /// After a resume, the optimizer counts its steps from 1.
    StepCountRestarts,
    /// Weight decay is added to the gradient instead of being decoupled from it.
    CoupledDecay,
    /// From step 3 on the first bucket's update is made to a copy of its parameters.
    StaleParameters,
    /// Momentum begins anew in every step.
    MomentumForgotten,
    /// The rate is rounded to single precision.
    RateInSinglePrecision,
    /// In step 3 the last rank leaves out the update.
    UpdateSkippedOnOneRank,
    /// From step 3 on parameters are cut to 16 bits after the update.
    MastersCut,

    // ZeRO-1
    /// Shards end where an even split of the elements falls instead of on block boundaries.
    ShardAlignment,
    /// Updated parameters are not gathered.
    GatherSkipped,
    /// Those of the second bucket are not gathered.
    GatherSkipsABucket,
    /// Parameters are gathered before they are updated.
    GatherBeforeUpdate,
    /// The last rank's copy of one parameter is off by one unit in the last place.
    OneRanksParameter,

    // Checkpoint files
    /// The first average is saved in place of the second one.
    WrongStateSaved,
    /// Parameters are saved in 16 bits.
    Bf16Checkpoint,
    /// Two tensors of one shape are saved under each other's names.
    TensorsSwapped,
    /// The last rank's file is lost after the checkpoint was published.
    FileLost,
    /// A bit of a file flips after the checkpoint was published.
    BitFlipOnDisk,
    /// A checkpoint names the step before its own.
    StepOffByOne,
    /// Offsets of pieces do not count what lies before them in other shards.
    PieceOffset,

    // Resume
    /// A resume leaves the optimizer's state at zero.
    ForgetOptimizer,
    /// A resume loads the first average only.
    HalfTheOptimizer,
    /// One bit of the optimizer's state flips while it is loaded.
    BitFlipOnLoad,
    /// A shard that begins within a tensor is loaded from the tensor's start.
    ReshardOffset,
    /// A resume leaves the last rank with zeros for one bucket's parameters.
    LoadOnOneRank,
    /// A resume drops the record of one step too many.
    RecordLosesAStep,

    // Compression
    /// What compression leaves out of a gradient is lost instead of being added to the next one.
    ForgetResiduals,
    /// What rounding left out is subtracted instead of added.
    FeedbackSign,
    /// A rank goes on with its own shard of the gradient as it was before rounding.
    OwnShardNotRounded,
    /// PowerSGD draws its directions anew in every step.
    FreshDirections,

    // Precision
    /// A resume begins with the first loss scale instead of the checkpoint's.
    ScaleResetOnResume,
    /// The norm is that of the scaled gradient, and so is what is clipped by it.
    ClipBeforeUnscale,
    /// The last rank does not see that the gradient is not finite, and updates.
    FoundInfOnOneRank,
    /// Gradients are added up in bf16 though fp32 is asked for.
    ReducedInBf16,
    /// A step that overflowed counts towards the next growth of the loss scale.
    OverflowCounted,
    /// The 16-bit copies of parameters are not made anew after an update.
    StaleCasts,
    /// In step 3 one micro-batch's gradient is so large that it overflows in fp16.
    LossSpike,

    // Collectives
    /// The last rank reduces the buckets in the opposite order.
    BucketOrder,
    /// The last rank gathers a gradient as if one element more belonged to the first rank, and one less to itself.
    GatherLength,
    /// In step 3 the last rank leaves out the exchange of losses.
    SkippedCollective,
    /// The last rank's training thread loops for ever in step 3.
    EndlessLoop,
    /// In step 3 the last rank leaves without a word.
    RankLeaves,

    // NCCL
    /// From step 3 on nobody waits for the stream that NCCL's operations run on: what they received is read too early.
    StreamNotAwaited,
    /// In step 3 the last rank gets each message of NCCL with one bit wrong.
    WrongAnswer,
}
