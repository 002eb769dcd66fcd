//! Random numbers that depend on what they are for, never on who draws them or when.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11) is a function from a key and
//! a counter to 128 random bits: no state to carry, save or share. The key is the run's seed; the counter names
//! the use (purpose, tensor or layer, micro-batch, step) and the element. So a rank that computes micro-batch 5
//! draws the numbers of micro-batch 5, whichever rank it is, in the first attempt and after a restart.

/// What random numbers are for. Streams of different purposes have no counter in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    InitialWeights = 1,
    SampleOrder = 2,
    Dropout = 3,
    /// Images of the drawn set.
    Image = 4,
    Augmentation = 5,
    LayerDrop = 6,
    PowerSgd = 7,
    Perturbation = 8,
    /// Episodes of the simulated arm.
    Episode = 9,
    FlowNoise = 10,
    FlowTimes = 11,
}

/// An endless sequence of random numbers: element `i` depends on these fields and `i` alone. Streams of which any
/// field differs are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The run's seed.
    pub seed: u64,
    pub purpose: Purpose,
    /// The site that draws: a tensor, a layer. Below 2^24.
    pub a: u32,
    /// Micro-batch, sample, or 0.
    pub b: u32,
    /// Step or epoch, or 0.
    pub c: u32,
}

const BLOCK_WORDS: usize = 4;
/// Blocks that are worked on together: enough for the compiler to make vector instructions of the loop over them.
const BATCH_BLOCKS: usize = 64;
const BATCH_WORDS: usize = BATCH_BLOCKS * BLOCK_WORDS;

/// Philox4x32-10. Words are the low halves of 64 bits, because that is what a vector multiplication reads; what piles
/// up in the high halves is ignored.
#[inline(always)]
fn philox(counter: [u32; BLOCK_WORDS], mut key: [u32; 2]) -> [u32; BLOCK_WORDS] {
    const LOW: u64 = 0xffff_ffff;
    let mut words = counter.map(u64::from);
    for _ in 0..10 {
        let product0 = (words[0] & LOW) * 0xD251_1F53;
        let product1 = (words[2] & LOW) * 0xCD9E_8D57;
        words = [
            (product1 >> 32) ^ words[1] ^ u64::from(key[0]),
            product1,
            (product0 >> 32) ^ words[3] ^ u64::from(key[1]),
            product0,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    words.map(|word| word as u32)
}

/// Philox of consecutive counters, of which only the first word differs.
#[inline(always)]
fn philox_batch(first: u32, [a, b, c]: [u32; 3], key: [u32; 2], out: &mut [u32; BATCH_WORDS]) {
    for (index, block) in out.as_chunks_mut::<BLOCK_WORDS>().0.iter_mut().enumerate() {
        *block = philox([first + index as u32, a, b, c], key);
    }
}

/// The same integers in half the time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn philox_batch_avx2(first: u32, name: [u32; 3], key: [u32; 2], out: &mut [u32; BATCH_WORDS]) {
    philox_batch(first, name, key, out);
}

impl Stream {
    /// First values of the parameter that is the `tensor`-th of the model.
    pub fn initial_weights(seed: u64, tensor: u32) -> Self {
        Self { seed, purpose: Purpose::InitialWeights, a: tensor, b: 0, c: 0 }
    }

    /// The order of the samples in one epoch.
    pub fn sample_order(seed: u64, epoch: u64) -> Self {
        Self { seed, purpose: Purpose::SampleOrder, a: 0, b: (epoch >> 32) as u32, c: epoch as u32 }
    }

    /// What dropout at one `site` of the model zeroes for one micro-batch of one step.
    pub fn dropout(seed: u64, site: u32, micro_batch: u32, step: u32) -> Self {
        Self { seed, purpose: Purpose::Dropout, a: site, b: micro_batch, c: step }
    }

    /// What image `id` of a drawn set looks like.
    pub fn image(seed: u64, id: u32) -> Self {
        Self { seed, purpose: Purpose::Image, a: 0, b: id, c: 0 }
    }

    /// How one sample is shifted and mirrored in one epoch.
    pub fn augmentation(seed: u64, id: u32, epoch: u32) -> Self {
        Self { seed, purpose: Purpose::Augmentation, a: 0, b: id, c: epoch }
    }

    /// Whether one layer is left out for one micro-batch of one step.
    pub fn layer_drop(seed: u64, layer: u32, micro_batch: u32, step: u32) -> Self {
        Self { seed, purpose: Purpose::LayerDrop, a: layer, b: micro_batch, c: step }
    }

    /// The directions that PowerSGD first looks in, for the `parameter`-th of the model; `draw` counts the new beginnings.
    pub fn power_sgd(seed: u64, parameter: u32, draw: u32) -> Self {
        Self { seed, purpose: Purpose::PowerSgd, a: parameter, b: 0, c: draw }
    }

    /// How far the elements of the `parameter`-th of the model, or of its gradient of one micro-batch, are moved in one step.
    /// The seed is the perturbation's, not the run's.
    pub fn perturbation(seed: u64, parameter: u32, micro_batch: u32, step: u32) -> Self {
        Self { seed, purpose: Purpose::Perturbation, a: parameter, b: micro_batch, c: step }
    }

    /// How episode `id` of a simulated arm begins.
    pub fn episode(seed: u64, id: u32) -> Self {
        Self { seed, purpose: Purpose::Episode, a: 0, b: id, c: 0 }
    }

    /// What the flows of one sample's actions begin with, in one epoch.
    pub fn flow_noise(seed: u64, id: u32, epoch: u32) -> Self {
        Self { seed, purpose: Purpose::FlowNoise, a: 0, b: id, c: epoch }
    }

    /// Where on their way one sample's flows are looked at, in one epoch.
    pub fn flow_times(seed: u64, id: u32, epoch: u32) -> Self {
        Self { seed, purpose: Purpose::FlowTimes, a: 0, b: id, c: epoch }
    }

    /// Uniform 32-bit numbers: elements `0..out.len()`.
    pub fn fill_u32(&self, out: &mut [u32]) {
        self.fill_u32_at(0, out);
    }

    /// Uniform 32-bit numbers: elements `offset..offset + out.len()`, of which a stream has 2^34.
    pub fn fill_u32_at(&self, offset: u64, out: &mut [u32]) {
        let within = (offset % BLOCK_WORDS as u64) as usize;
        let mut block = offset / BLOCK_WORDS as u64;
        let (head, rest) =
            out.split_at_mut(if within == 0 { 0 } else { (BLOCK_WORDS - within).min(out.len()) });
        if !head.is_empty() {
            head.copy_from_slice(&self.block(block)[within..within + head.len()]);
            block += 1;
        }
        let (batches, tail) = rest.as_chunks_mut::<BATCH_WORDS>();
        for batch in batches {
            self.batch(block, batch);
            block += BATCH_BLOCKS as u64;
        }
        for words in tail.chunks_mut(BLOCK_WORDS) {
            words.copy_from_slice(&self.block(block)[..words.len()]);
            block += 1;
        }
    }

    /// Element `index` of a sequence of uniform numbers in `[0, 1)`, multiples of 2^-53.
    pub fn uniform_f64(&self, index: u64) -> f64 {
        let words = self.block(index / 2);
        let first = (index % 2) as usize * 2;
        unit(words[first], words[first + 1])
    }

    /// Normally distributed numbers: Box–Muller in double precision, then rounded. The logarithm, sine and cosine
    /// are those of the `libm` crate, because a C library's differ in the last bit between versions and processors.
    pub fn fill_normal(&self, mean: f64, std: f64, out: &mut [f32]) {
        for (block, pair) in out.chunks_mut(2).enumerate() {
            let words = self.block(block as u64);
            let radius = (-2.0 * libm::log(1.0 - unit(words[0], words[1]))).sqrt();
            let (sin, cos) = libm::sincos(std::f64::consts::TAU * unit(words[2], words[3]));
            for (element, direction) in pair.iter_mut().zip([cos, sin]) {
                *element = (mean + std * (radius * direction)) as f32;
            }
        }
    }

    /// Factors of inverted dropout: `1 / keep_probability` with that probability, else 0.
    ///
    /// # Panics
    /// Unless the probability is in `0..=1`; the configuration's validation sees to that.
    pub fn fill_keep_mask(&self, keep_probability: f64, out: &mut [f32]) {
        assert!(
            (0.0..=1.0).contains(&keep_probability),
            "keep probability {keep_probability} is not in 0..=1"
        );
        // 2^32 for a probability of 1, which keeps every 32-bit number.
        let threshold = (keep_probability * 4_294_967_296.0).round() as u64;
        let factor = if threshold == 0 { 0.0 } else { (1.0 / keep_probability) as f32 };
        let mut words = [0; BATCH_WORDS];
        for (batch, factors) in out.chunks_mut(BATCH_WORDS).enumerate() {
            self.batch((batch * BATCH_BLOCKS) as u64, &mut words);
            for (element, &word) in factors.iter_mut().zip(&words) {
                *element = if u64::from(word) < threshold { factor } else { 0.0 };
            }
        }
    }

    /// The last three words of the counter, and the key.
    fn name(&self) -> ([u32; 3], [u32; 2]) {
        assert!(self.a < 1 << 24, "random site {} is not below 2^24", self.a);
        ([self.a | (self.purpose as u32) << 24, self.b, self.c], [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Elements `4 * block..4 * block + 4`.
    fn block(&self, block: u64) -> [u32; BLOCK_WORDS] {
        let ([a, b, c], key) = self.name();
        philox([first_counter(block, 1), a, b, c], key)
    }

    /// Elements from `4 * first` on.
    fn batch(&self, first: u64, out: &mut [u32; BATCH_WORDS]) {
        let (name, key) = self.name();
        let first = first_counter(first, BATCH_BLOCKS as u64);
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has just been found to have AVX2.
            return unsafe { philox_batch_avx2(first, name, key, out) };
        }
        philox_batch(first, name, key, out);
    }
}

/// The counter word of the first of some blocks. A stream that wrapped would repeat itself unnoticed.
fn first_counter(first: u64, blocks: u64) -> u32 {
    assert!(first <= (1 << 32) - blocks, "a random stream has 2^34 elements");
    first as u32
}

/// A multiple of 2^-53 in `[0, 1)` from 64 random bits.
fn unit(high: u32, low: u32) -> f64 {
    let bits = u64::from(high) << 32 | u64::from(low);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
#[path = "random_tests.rs"]
mod tests;
