//! What is swept: every combination of the values that were asked for.

use lockstep_record::Manifest;

/// One way to run the same training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// `parallel.bucket_mb`, in MiB.
    pub bucket_mb: f64,
    /// `parallel.overlap`.
    pub overlap: bool,
    /// `run.threads_per_rank`. It changes bits.
    pub threads: u32,
}

/// The values of each that were asked for; none for what the configuration says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sweep {
    pub buckets: Vec<f64>,
    pub overlap: Vec<bool>,
    pub threads: Vec<u32>,
}

impl Setting {
    /// What a finished run was configured with.
    pub fn of(manifest: &Manifest) -> Result<Self, String> {
        let value = |section: &str, key: &str| manifest.config.get(section).and_then(|keys| keys.get(key));
        let missing = |key: &str| format!("its record does not say what {key} was");
        let threads = value("run", "threads_per_rank").and_then(|value| value.as_u64());
        Ok(Self {
            bucket_mb: value("parallel", "bucket_mb")
                .and_then(|value| value.as_f64())
                .ok_or_else(|| missing("parallel.bucket_mb"))?,
            overlap: value("parallel", "overlap")
                .and_then(|value| value.as_bool())
                .ok_or_else(|| missing("parallel.overlap"))?,
            threads: threads
                .and_then(|threads| u32::try_from(threads).ok())
                .ok_or_else(|| missing("run.threads_per_rank"))?,
        })
    }

    /// As `--set` takes it.
    pub fn sets(&self) -> [String; 3] {
        [
            format!("parallel.bucket_mb={}", self.bucket_mb),
            format!("parallel.overlap={}", self.overlap),
            format!("run.threads_per_rank={}", self.threads),
        ]
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let overlap = if self.overlap { "overlap" } else { "no overlap" };
        let threads = if self.threads == 1 { "1 thread".into() } else { format!("{} threads", self.threads) };
        formatter.pad(&format!("{} MiB, {overlap}, {threads}", self.bucket_mb))
    }
}

impl Sweep {
    /// The configuration's own setting first, then every other combination, each once.
    pub fn settings(&self, own: Setting) -> Vec<Setting> {
        fn or_own<T: Copy>(values: &[T], own: T) -> Vec<T> {
            if values.is_empty() { vec![own] } else { values.to_vec() }
        }
        let mut settings = vec![own];
        for threads in or_own(&self.threads, own.threads) {
            for overlap in or_own(&self.overlap, own.overlap) {
                for bucket_mb in or_own(&self.buckets, own.bucket_mb) {
                    let setting = Setting { bucket_mb, overlap, threads };
                    if !settings.contains(&setting) {
                        settings.push(setting);
                    }
                }
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: Setting = Setting { bucket_mb: 25.0, overlap: true, threads: 1 };

    #[test]
    fn what_is_not_asked_for_is_left_as_it_is() {
        assert_eq!(Sweep::default().settings(OWN), [OWN]);
        let sweep = Sweep { buckets: vec![1.0, 25.0], ..Sweep::default() };
        assert_eq!(sweep.settings(OWN), [OWN, Setting { bucket_mb: 1.0, ..OWN }]);
    }

    #[test]
    fn settings_are_spelled_as_the_trainer_reads_them() {
        let sets = Setting { bucket_mb: 0.5, overlap: false, threads: 2 }.sets();
        assert_eq!(sets, ["parallel.bucket_mb=0.5", "parallel.overlap=false", "run.threads_per_rank=2"]);
    }

    proptest! {
        #[test]
        fn every_combination_is_there_once(
            buckets in proptest::collection::vec(1..9u8, 0..4),
            overlap in proptest::collection::vec(any::<bool>(), 0..3),
            threads in proptest::collection::vec(1..4u32, 0..3),
        ) {
            let buckets: Vec<f64> = buckets.into_iter().map(f64::from).collect();
            let sweep = Sweep { buckets: buckets.clone(), overlap: overlap.clone(), threads: threads.clone() };
            let settings = sweep.settings(OWN);
            prop_assert_eq!(settings[0], OWN);
            for (index, setting) in settings.iter().enumerate() {
                prop_assert!(!settings[..index].contains(setting));
            }
            for &bucket_mb in &buckets {
                for &overlap in &overlap {
                    for &threads in &threads {
                        let wanted = Setting { bucket_mb, overlap, threads };
                        prop_assert!(settings.contains(&wanted));
                    }
                }
            }
        }
    }
}
