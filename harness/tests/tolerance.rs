//! `lockstep-harness tolerance` and `compare --tolerance auto` on run directories whose distances are known.

mod common;

use common::{Run, STEPS, harness};
use lockstep_record::{Perturbation, Perturbed, Phase, Real, RunDir, Sketch, Unit};
use std::path::{Path, PathBuf};

/// As far as a unit in the last place moves a norm here.
const MOVE: f64 = 1e-7;

/// Numbers in −1..1 that depend on all of these.
fn noise(seed: u64, step: u64, salt: u64) -> f64 {
    let mut state =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ step.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (salt << 17);
    for _ in 0..3 {
        state = (state ^ (state >> 30)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 27;
    }
    (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// A tensor with random elements, moved by noise of one run: the same for seed 0, which is the golden run.
fn elements(seed: u64, step: u64, salt: u64) -> Vec<f32> {
    let value = |i: u64| {
        let moved = if seed == 0 { 0.0 } else { MOVE * step as f64 * noise(seed, step, salt * 1000 + i) };
        (noise(0, step, salt * 1000 + i) + moved) as f32
    };
    (0..500).map(value).collect()
}

/// A run whose numbers grow away from the golden run's from step to step, as far as MOVE says.
fn run(seed: u64) -> Run {
    let mut run = Run::new(1);
    let moved = |step: u64, salt: u64| {
        if seed == 0 { 0.0 } else { MOVE * step as f64 * noise(seed, step, salt) }
    };
    for line in &mut run.metrics {
        let step = line.step;
        for (salt, value) in
            (1..).zip([&mut line.gradient_norm, &mut line.parameter_norm, &mut line.clip_coefficient])
        {
            *value = Real(value.0 * (1.0 + moved(step, salt)));
        }
        // In the first step the losses come before any addition.
        if step > 1 {
            line.loss = Real(line.loss.0 * (1.0 + moved(step, 9)));
            line.validation_loss = line.validation_loss.map(|loss| Real(loss.0 * (1.0 + moved(step, 10))));
            for (salt, loss) in (20..).zip(&mut line.micro_batch_losses) {
                *loss = Real(f64::from((loss.0 * (1.0 + moved(step, salt))) as f32));
            }
        }
    }
    for (salt, line) in (30..).zip(&mut run.digests) {
        let untouched = line.step == 0 || line.step == 1 && line.phase == Phase::LocalGradient;
        let seed = if untouched { 0 } else { seed };
        let values = elements(seed, line.step, salt);
        line.norm = Real(values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt());
        line.sketch = Some(Sketch::of(&values));
        line.digest.0 ^= u128::from(seed);
    }
    run
}

fn perturbed(seed: u64) -> Run {
    let mut run = run(seed);
    run.manifest.segments[0].perturbation =
        Some(Perturbation { of: Perturbed::Gradients, seed, unit: Unit::Fp32 });
    run
}

struct Stand {
    folder: tempfile::TempDir,
}

impl Stand {
    /// A golden run, and its envelope of 12 perturbed runs.
    fn new() -> Self {
        let stand = Self { folder: tempfile::tempdir().unwrap() };
        run(0).write(&stand.at("golden"));
        let runs: Vec<String> = (1..=12)
            .map(|seed| {
                let path = stand.at(&format!("perturbed-{seed}"));
                perturbed(seed).write(&path);
                path.to_str().unwrap().to_owned()
            })
            .collect();
        let golden = stand.text("golden");
        let words: Vec<&str> =
            ["tolerance", &golden].into_iter().chain(runs.iter().map(String::as_str)).collect();
        let (code, out, errors) = harness(&words);
        assert_eq!(code, 0, "{errors}");
        assert!(out.contains("12 perturbed runs (--perturb gradients in units of fp32), 6 steps"), "{out}");
        stand
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// Compares a candidate with the golden run, by its envelope.
    fn judge(&self, candidate: &Run) -> (i32, String) {
        let path = self.at("candidate");
        let _ = std::fs::remove_dir_all(&path);
        candidate.write(&path);
        let (code, out, errors) =
            harness(&["compare", &self.text("golden"), &self.text("candidate"), "--tolerance", "auto"]);
        (code, out + &errors)
    }
}

#[test]
fn runs_of_the_same_kind_pass() {
    let stand = Stand::new();
    for seed in 1000..1030 {
        let (code, out) = stand.judge(&run(seed));
        assert_eq!(code, 0, "{seed}: {out}");
        assert!(out.contains("% of the tolerance"), "{out}");
        assert!(out.contains("The runs agree within tolerance auto, over 5 steps."), "{out}");
    }
}

#[test]
fn what_is_a_little_farther_is_named_where_it_is() {
    let stand = Stand::new();
    let judge = |spoil: fn(&mut Run)| {
        let mut candidate = run(1000);
        spoil(&mut candidate);
        let (code, out) = stand.judge(&candidate);
        assert_eq!(code, 100, "{out}");
        out.split_once("First difference:\n  ").unwrap().1.to_owned()
    };
    let first = judge(|run| run.metrics[2].gradient_norm.0 *= 1.0 + 1e-4);
    assert!(
        first.starts_with("step 3, norm, gradient_norm: golden ") && first.contains(" times the limit of "),
        "{first}"
    );
    // The norm alone would not show it: other elements, the same length.
    let first = judge(|run| {
        let line = run.digest(2, Phase::ReducedGradient, "wte.bias");
        line.sketch.as_mut().unwrap().0[3].0 += 1e-3;
    });
    assert!(first.starts_with("step 2, reduced gradient, wte.bias, rank 0: golden within "), "{first}");
    assert!(first.contains(" away (Euclidean, "), "{first}");
    // A scale that is wrong everywhere by a millionth moves no element by much, but the norm.
    let first = judge(|run| run.digest(2, Phase::Optimizer, "exp_avg/wte.bias").norm.0 *= 1.0 + 1e-5);
    assert!(first.starts_with("step 2, optimizer, exp_avg/wte.bias, rank 0: golden "), "{first}");
    // Before any addition bits have to agree, in the learning rate nearly so.
    let first = judge(|run| run.metrics[0].loss.0 = run.metrics[0].loss.0.next_up());
    assert!(
        first.starts_with("step 1, forward, loss: ") && first.contains("its bits should be the same"),
        "{first}"
    );
    let first = judge(|run| run.metrics[3].learning_rate.0 *= 1.0 + 1e-12);
    assert!(first.starts_with("step 4, optimizer, learning_rate: "), "{first}");
    let first = judge(|run| run.metrics[3].loss.0 = f64::NAN);
    assert!(first.starts_with("step 4, forward, loss: "), "{first}");
    let first = judge(|run| run.tensor("model/wte.weight")[2345] += 1e-3);
    assert!(first.starts_with("step 5, checkpoint, model/wte.weight[2345]: golden within "), "{first}");
    let first = judge(|run| run.samples[1].micro_batches[0][1] = 77);
    assert!(first.starts_with("step 2, data, micro-batch 0, sample ids"), "{first}");
}

#[test]
fn a_candidate_without_sketches_is_compared_by_its_norms_and_says_so() {
    let stand = Stand::new();
    let mut candidate = run(1000);
    candidate.digests.iter_mut().for_each(|line| line.sketch = None);
    let (code, out) = stand.judge(&candidate);
    assert_eq!(code, 0, "{out}");
    let row = out.lines().find(|line| line.starts_with("distances of tensors")).unwrap();
    assert!(row.contains("not compared") && row.contains("record.sketches=true"), "{row}");
    let row = out.lines().find(|line| line.starts_with("norms of tensors")).unwrap();
    assert!(row.contains("within tolerance"), "{row}");
}

#[test]
fn what_the_envelope_does_not_know_is_noted() {
    let stand = Stand::new();
    let mut candidate = run(1000);
    // Two phases later than the golden run has them.
    let mut golden = run(0);
    golden.digests.retain(|line| line.phase != Phase::LocalGradient);
    golden.write(&stand.at("fewer"));
    let (code, _, errors) =
        harness(&["compare", &stand.text("fewer"), &stand.text("golden"), "--tolerance", "auto"]);
    assert_eq!(code, 101);
    assert!(errors.contains("has no envelope yet: make it with `lockstep-harness tolerance "), "{errors}");
    candidate.metrics[1].validation_loss = Some(Real(4.0));
    let (code, out) = stand.judge(&candidate);
    assert_eq!(code, 0, "{out}");
}

/// Any number of runs beside the golden one, which has the envelope.
#[test]
fn a_report_judges_each_run_by_the_envelope_of_the_first() {
    let stand = Stand::new();
    run(1000).write(&stand.at("near"));
    run(1001).write(&stand.at("also-near"));
    let mut far = run(1002);
    far.tensor("model/wte.weight")[2345] += 1e-3;
    far.write(&stand.at("far"));
    let report = |names: &[&str], options: &[&str]| {
        let paths: Vec<String> = names.iter().map(|name| stand.text(name)).collect();
        let paths = paths.iter().map(String::as_str);
        let words: Vec<&str> = ["report"].into_iter().chain(paths).chain(options.iter().copied()).collect();
        let (code, out, errors) = harness(&words);
        (code, out + &errors)
    };
    let row = |out: &str, name: &str| {
        let row = out.lines().find(|line| line.starts_with(&format!("runs/{name} ")));
        row.unwrap_or_else(|| panic!("no line of {name}: {out}")).to_owned()
    };
    let auto = ["--tolerance", "auto"];
    let (code, out) = report(&["golden", "near", "also-near", "far"], &auto);
    assert_eq!(code, 100, "{out}");
    for name in ["near", "also-near"] {
        let row = row(&out, name);
        assert!(row.contains("tolerance auto") && row.contains("passed"), "{row}");
    }
    let far = row(&out, "far");
    assert!(far.contains("DIFFERENT") && far.contains("%"), "{far}");
    assert!(far.contains("step 5, checkpoint, model/wte.weight[2345]: golden within "), "{far}");
    assert_eq!(report(&["golden", "near", "also-near"], &auto).0, 0);
    // The controls: bit for bit they differ, and without an envelope nothing is known.
    assert_eq!(report(&["golden", "near", "also-near"], &[]).0, 100);
    let (code, out) = report(&["near", "golden"], &auto);
    assert_eq!(code, 101, "{out}");
    let row = row(&out, "golden");
    assert!(row.contains("NOT COMPARED") && row.contains("has no envelope yet: make it with"), "{row}");
    assert_eq!(report(&["golden", "near"], &["--tolerance", "auto", "--rtol", "1e-5"]).0, 2);
}

#[test]
fn a_damaged_envelope_is_refused() {
    let stand = Stand::new();
    let folder = RunDir::new(stand.at("golden")).tolerance();
    let whole = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let (header, lines) = (whole("envelope.json"), whole("envelope.jsonl"));
    let judge = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        let (code, out) = stand.judge(&run(1000));
        assert_eq!(code, 101, "{out}");
        out
    };
    assert!(judge("envelope.json", "{").contains("envelope.json"));
    let newer = header.replacen("\"record_version\": ", "\"record_version\": 9", 1);
    assert!(judge("envelope.json", &newer).contains("is newer than"));
    let fewer = header.replacen("\"name\": \"loss\"", "\"name\": \"other\"", 1);
    std::fs::write(folder.join("envelope.json"), fewer).unwrap();
    assert!(stand.judge(&run(1000)).1.contains("not in the envelope, first loss at step 1"));
    std::fs::write(folder.join("envelope.json"), &header).unwrap();
    assert!(judge("envelope.jsonl", &lines[..lines.len() / 2]).contains("cut short"));
    let short = lines.replacen("\"distance\":[", "\"distance\":[null,", 1);
    assert!(judge("envelope.jsonl", &short).contains("line 1: not one entry for each of the"));
    std::fs::write(folder.join("envelope.jsonl"), &lines).unwrap();
    assert_eq!(stand.judge(&run(1000)).0, 0);
}

#[test]
fn what_cannot_be_made_says_why() {
    let stand = Stand::new();
    let make = |words: &[&str]| {
        let (code, _, errors) = harness(&[&["tolerance"], words].concat());
        (code, errors)
    };
    let (golden, one) = (stand.text("golden"), stand.text("perturbed-1"));
    let (code, errors) = make(&[&golden, &one]);
    assert!(code == 2 && errors.contains("exists already: remove it to make another"), "{errors}");
    std::fs::remove_dir_all(RunDir::new(&golden).tolerance()).unwrap();
    let (code, errors) = make(&[&golden, &one]);
    assert!(code == 2 && errors.contains("1 perturbed runs are too few"), "{errors}");
    let (code, errors) = make(&[&stand.text("nowhere"), &one, &one, &one, &one, &one, &one]);
    assert!(code == 2 && errors.contains("not a run directory"), "{errors}");
    let many: Vec<String> = (2..=7).map(|seed| stand.text(&format!("perturbed-{seed}"))).collect();
    let words: Vec<&str> = [one.as_str()].into_iter().chain(many.iter().map(String::as_str)).collect();
    let (code, errors) = make(&words);
    assert!(code == 2 && errors.contains("it is itself a perturbed run"), "{errors}");
    let mut cut = perturbed(2);
    cut.digests.retain(|line| line.step < STEPS);
    cut.write(Path::new(&many[0]));
    let (code, errors) = make(&[&[golden.as_str()], &words[..]].concat());
    assert!(code == 101 && errors.contains("of step 5, which the golden run has"), "{errors}");
}
