//! Readers of what lies beside a golden run: its envelope, and the header of one that was stored.

use lockstep_harness::compare::{Mode, compare};
use lockstep_harness::goldens::{self, Blessing, bless};
use lockstep_harness::report::comparison_text;
use lockstep_harness::tolerance::{Envelope, Factor, Header, Measure, Series, Spreads, file_digest};
use lockstep_record::{Manifest, Perturbed, Phase, RECORD_VERSION, Real, RunDir, Unit, read_json};

use super::targets::{Scratch, file};
use crate::common::STEPS;

/// Writes an envelope beside the golden run, and returns one of its files.
pub fn envelope_file(scratch: &Scratch, name: &str) -> Vec<u8> {
    let golden: Manifest = read_json(&scratch.golden.manifest()).unwrap();
    let series = |phase: Option<Phase>, name: &str| Series { phase, micro_batch: None, name: name.into() };
    let factor =
        |measure, phase: Option<Phase>| Factor { measure, phase, factor: 3.5, largest: vec![1.0; 7] };
    let phase = Some(Phase::ReducedGradient);
    let header = Header {
        record_version: RECORD_VERSION,
        golden: Manifest { segments: Vec::new(), ..golden },
        golden_digests: file_digest(&scratch.golden.digests()).unwrap(),
        perturbed: Perturbed::Gradients,
        unit: Unit::Fp32,
        seeds: (1..=7).collect(),
        terms: 8,
        sum_factor: 2.9,
        false_alarms: 1e-3,
        factors: vec![
            factor(Measure::Value, None),
            factor(Measure::Value, phase),
            factor(Measure::Distance, phase),
        ],
        series: vec![series(None, "loss"), series(phase, "wte.weight")],
    };
    let spreads = |step| Spreads {
        step,
        distance: vec![None, Some(Real(1e-6))],
        value: vec![Some(Real(1e-7)), Some(Real(1e-7))],
    };
    Envelope::new(header, (1..=STEPS).map(spreads).collect()).write(&scratch.golden).unwrap();
    file(&scratch.golden.tolerance().join(name))
}

pub fn in_envelope(scratch: &Scratch, name: &str, bytes: &[u8]) -> bool {
    std::fs::write(scratch.golden.tolerance().join(name), bytes).unwrap();
    let comparison = compare(scratch.golden.path(), scratch.candidate.path(), Mode::Auto);
    if let Ok(comparison) = &comparison {
        assert!(!comparison_text(comparison).is_empty());
    }
    comparison.is_ok()
}

/// A run that is stored as a golden one.
pub fn golden_header(scratch: &Scratch) -> Vec<u8> {
    let stored = RunDir::new(scratch.path("stored"));
    if !stored.path().exists() {
        let blessing = Blessing {
            run: scratch.golden.path().to_owned(),
            into: stored.path().to_owned(),
            note: Some("a note".into()),
            replace: false,
            // Made by hand, it has no program's faults and no program's care.
            unchecked: true,
            all_checkpoints: false,
        };
        bless(&blessing).unwrap();
    }
    file(&stored.golden_header())
}

pub fn read_golden_header(scratch: &Scratch, bytes: &[u8]) -> bool {
    let stored = RunDir::new(scratch.path("stored"));
    std::fs::write(stored.golden_header(), bytes).unwrap();
    match goldens::Header::read(&stored) {
        Ok(Some(header)) => {
            assert!(!header.title().is_empty());
            let _ = header.check_files(&stored);
            header.into_revisions();
            true
        }
        _ => false,
    }
}
