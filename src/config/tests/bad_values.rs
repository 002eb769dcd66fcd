//! Keys and values that a configuration cannot have: the exact message of each.

use super::*;

#[test]
fn unknown_keys_are_all_named_with_the_nearest_known_one() {
    assert_eq!(
        error_of("optim:\n  learning_rate: 1\n  beta: [0, 1]\nmodle: { layers: 1 }\n"),
        "3 problems in the configuration:\n  \
         c.yaml:3: optim.learning_rate: unknown key; did you mean optim.lr?\n  \
         c.yaml:4: optim.beta: unknown key; did you mean optim.betas?\n  \
         c.yaml:5: modle: unknown key; did you mean model?"
    );
    assert_eq!(
        error_of("record: { zzzz: 1 }\n"),
        "c.yaml:2: record.zzzz: unknown key; there are digests_every, local_gradients, sketches, telemetry_every_s"
    );
}

#[test]
fn missing_keys() {
    let folder = Folder::new(&[("c.yaml", "run: { name: a }\n")]);
    let others = crate::config::keys::Keys::get().keys.len() - 2;
    assert_eq!(
        folder.error(&["c.yaml"], &[]),
        format!(
            "the configuration gives no value to run.dir and {others} other keys; add `extends: base.yaml`, which gives \
             every key a value"
        )
    );
}

#[test]
fn sections_and_keys_are_not_confused() {
    assert_eq!(
        error_of("model:\nrun: 3\n"),
        "2 problems in the configuration:\n  \
         c.yaml:2: model: this is a section of keys, but it holds nothing; indent its keys below it, or delete the line\n  \
         c.yaml:3: run: this is a section of keys, but it holds a single value; indent its keys below it, or delete the \
         line"
    );
    assert_eq!(
        error_of("optim: { lr: { peak: 1 } }\n"),
        "c.yaml:2: optim.lr: found a mapping; give a number from 0 to 1000000"
    );
    assert_eq!(
        error_of("optim.lr: 1\n"),
        "c.yaml:2: optim.lr: dotted keys are for --set; write `optim: { lr: ... }`"
    );
}

#[test]
fn types_and_bounds() {
    let cases = [
        ("optim.lr=-1", "found -1; give a number from 0 to 1000000"),
        ("optim.lr=fast", "found \"fast\"; give a number from 0 to 1000000"),
        ("optim.lr=null", "found null; give a number from 0 to 1000000"),
        ("optim.lr=.nan", "found .nan, which is not a finite number; give a number from 0 to 1000000"),
        ("optim.lr=1e999", "found 1e999, which is not a finite number; give a number from 0 to 1000000"),
        ("optim.eps=0", "found 0; give a number from 1e-30 to 1"),
        ("optim.betas=[0.9]", "found [0.9]; give a list of 2 numbers"),
        ("optim.betas=[0.9, 1]", "1 is out of range; give two numbers from 0 below 1"),
        ("optim.betas=[-0.1, 0.9]", "-0.1 is out of range; give two numbers from 0 below 1"),
        ("optim.clip_norm=0", "found 0; give a number above 0, or null"),
        ("optim.momentum=1", "found 1; give a number from 0 below 1"),
        ("optim.weight_decay=-0.1", "found -0.1; give a number from 0 to 1000000"),
        ("optim.kind=adam", "found \"adam\"; did you mean adamw? It takes adamw | sgd"),
        ("optim.kind=lion", "found \"lion\"; give adamw | sgd"),
        ("model.dropout=1", "found 1; give a number from 0 below 1"),
        ("model.context=0", "found 0; give a whole number from 1 to 1048576"),
        ("model.turns=65", "found 65; give a whole number from 1 to 64"),
        ("model.chunk=0", "found 0; give a whole number from 1 to 256"),
        ("model.ar_weight=-0.5", "found -0.5; give a number from 0 to 1000000"),
        ("model.fm_weight=.inf", "found .inf, which is not a finite number; give a number from 0 to 1000000"),
        ("model.layers=2.0", "found 2.0; give a whole number from 1 to 65536"),
        ("run.deterministic=yes", "found \"yes\"; give true or false"),
        ("run.threads_per_rank=1025", "found 1025; give a whole number from 1 to 1024"),
        (
            "run.seed=9223372036854775808",
            "found 9223372036854775808; give a whole number from 0 to 9223372036854775807",
        ),
        ("run.seed=99999999999999999999", "found 1e+20; give a whole number from 0 to 9223372036854775807"),
        ("batch.micro_batches=0", "found 0; give a whole number from 1 to 1048576"),
        ("data.validation_fraction=1", "found 1; give a number from 0 below 1"),
        ("data.max_samples=0", "found 0; give a whole number from 1, or null"),
        ("data.path=[a]", "found [\"a\"]; give text"),
        ("parallel.bucket_mb=0", "found 0; give a number above 0 to 16384"),
        ("parallel.timeout_s=1e7", "found 10000000.0; give a number above 0 to 1000000"),
        ("schedule.steps=0", "found 0; give a whole number from 1"),
        ("schedule.final_fraction=1.5", "found 1.5; give a number from 0 to 1"),
        ("checkpoint.keep=0", "found 0; give a whole number from 1"),
        ("evaluate.micro_batches=0", "found 0; give a whole number from 1 to 1048576"),
        ("precision=fp8", "found \"fp8\"; give fp32 | bf16 | fp16"),
        ("precision=half", "found \"half\"; give fp32 | bf16 | fp16"),
        ("reduce_dtype=null", "found null; give fp32 | bf16 | fp16"),
        ("scaler.enabled=true", "found true; give auto | never"),
        ("scaler.init_scale=0", "found 0; give a number from 1e-30 to 1e+30"),
        ("scaler.init_scale=-65536", "found -65536; give a number from 1e-30 to 1e+30"),
        (
            "scaler.init_scale=.nan",
            "found .nan, which is not a finite number; give a number from 1e-30 to 1e+30",
        ),
        ("scaler.growth_factor=1", "found 1; give a number above 1 to 1000000"),
        ("scaler.growth_factor=0.5", "found 0.5; give a number above 1 to 1000000"),
        ("scaler.backoff_factor=1", "found 1; give a number from 1e-6 below 1"),
        ("scaler.backoff_factor=0", "found 0; give a number from 1e-6 below 1"),
        ("scaler.growth_interval=0", "found 0; give a whole number from 1"),
        ("scaler.growth_interval=1.5", "found 1.5; give a whole number from 1"),
    ];
    for (set, expected) in cases {
        let key = set.split('=').next().unwrap();
        assert_eq!(error_of_set(set), format!("--set {set}: {key}: {expected}"));
    }
}

/// YAML 1.1 breaks lines at them and YAML 1.2 does not: a run with one in its name would not find itself.
#[test]
fn separators_that_readers_disagree_about() {
    for separator in ['\u{85}', '\u{2028}', '\u{2029}'] {
        let expected = format!(
            "found the line separator U+{:04X}; remove it, or write a newline (\\n) for it",
            separator as u32
        );
        let message = error_of_set(&format!("run.name=a{separator}b"));
        assert!(message.ends_with(&expected), "{message}");
    }
}

#[test]
fn across_fields() {
    let name = "give one of up to 200 bytes without slashes; run.dir says where it lies";
    let cases = [
        ("run.name=a/b", format!("\"a/b\" is not a plain folder name; {name}")),
        ("run.name=..", format!("\"..\" is not a plain folder name; {name}")),
        ("run.dir=~/runs", "`~` is not expanded in a configuration; write ${HOME} instead".into()),
        ("run.dir=\"\"", "the path is empty; give one".into()),
        ("model.heads=5", "5 heads do not divide model.width, 128; make the width a multiple of the heads".into()),
        ("schedule.warmup_steps=41", "41 is more than schedule.steps, 40; lower it, or train for more steps".into()),
        (
            "data.path=embedded:moby",
            "the program holds no data of this data.kind named moby; there is embedded:shakespeare".into(),
        ),
        (
            "data.path=no/such.txt",
            "cannot read no/such.txt: No such file or directory (os error 2); give a text file (relative paths start \
             from the working directory), or embedded:shakespeare"
                .into(),
        ),
        ("schedule.steps=18446744073709551615", "the number of tokens in the whole training overflows; lower it".into()),
    ];
    for (set, expected) in cases {
        let key = set.split('=').next().unwrap();
        assert_eq!(error_of_set(set), format!("--set {set}: {key}: {expected}"));
    }
}

#[test]
fn problems_of_several_fields_name_the_value_that_is_to_change() {
    let folder = Folder::new(&[(
        "c.yaml",
        "extends: base.yaml\n\
         model: { width: 12, heads: 4, positions: rotary }\n\
         data: { tokenizer: bpe, vocabulary: 256, validation_fraction: 0 }\n",
    )]);
    assert_eq!(
        without_base_lines(&folder.error(&["c.yaml"], &["run.name=a/b"])),
        "4 problems in the configuration:\n  \
         --set run.name=a/b: run.name: \"a/b\" is not a plain folder name; give one of up to 200 bytes without slashes; \
         run.dir says where it lies\n  \
         c.yaml:2: model.positions: rotary needs heads of even width, but model.width / model.heads is 3; change width \
         or heads, or choose learned\n  \
         c.yaml:3: data.vocabulary: bpe cannot have 256 tokens; give a whole number from 257 to 65536\n  \
         embedded base.yaml:<line>: evaluate.every: there is nothing to evaluate on: data.validation_fraction is 0; set it \
         to 0, or keep some data for validation"
    );
}

#[test]
fn precisions_that_do_not_fit_the_rest() {
    let refused = |sets: &[&str]| Folder::new(&[]).error(&[], sets);
    assert_eq!(
        refused(&["scaler.init_scale=1024"]),
        "--set scaler.init_scale=1024: scaler.init_scale: under precision: fp32 the loss is not scaled; leave the section \
         `scaler` as it is, or set precision: fp16"
    );
    assert!(
        refused(&["precision=bf16", "scaler.enabled=never"])
            .contains("scaler.enabled: under precision: bf16")
    );
    assert_eq!(
        refused(&["reduce_dtype=bf16", "parallel.reduction=native"]),
        "--set reduce_dtype=bf16: reduce_dtype: the library (parallel.reduction: native) cannot add in bf16; choose \
         reduction: ordered, or reduce_dtype: fp32"
    );
    let both = refused(&["reduce_dtype=fp16", "parallel.compression=powersgd"]);
    assert!(both.contains("choose compression: none, or reduce_dtype: fp32"), "{both}");
    let scaled = refused(&["precision=fp16", "parallel.compression=bf16"]);
    assert!(scaled.contains("whose loss scale may be another; choose compression: none"), "{scaled}");
    let accepted = |sets: &[&str]| Folder::new(&[]).load(&[], sets).unwrap().validate();
    assert_eq!(accepted(&["precision=fp16", "scaler.init_scale=1024", "reduce_dtype=fp16"]), Ok(()));
    assert_eq!(accepted(&["precision=fp16", "scaler.enabled=never", "parallel.compression=bf16"]), Ok(()));
    assert_eq!(accepted(&["precision=bf16", "reduce_dtype=bf16"]), Ok(()));
}

#[test]
fn looks_at_a_gpu_that_would_follow_one_another_without_a_pause() {
    let refused = |set: &str| Folder::new(&[]).error(&[], &[set]);
    assert_eq!(
        refused("record.telemetry_every_s=0.001"),
        "--set record.telemetry_every_s=0.001: record.telemetry_every_s: 0.001 s is shorter than a look at a GPU may take; \
         give at least 0.01, or 0 for none"
    );
    assert!(refused("record.telemetry_every_s=-1").contains("a number from 0 to 86400"));
    for set in ["record.telemetry_every_s=0", "record.telemetry_every_s=0.01"] {
        assert_eq!(Folder::new(&[]).load(&[], &[set]).unwrap().validate(), Ok(()));
    }
}

#[test]
fn a_vla_that_has_nothing_to_learn_or_cannot_be_built() {
    let base = ["model.kind=vla", "data.kind=arm", "data.path=embedded:reach"];
    let error = |sets: &[&str]| Folder::new(&[]).error(&[], &[&base, sets].concat());
    let cases: [(&[&str], &str); 5] = [
        (
            &["model.fm_weight=0", "model.ar_weight=0"],
            "--set model.ar_weight=0: model.ar_weight: this and model.fm_weight are 0: there is nothing to learn; give one \
             of them a number above 0",
        ),
        (
            &["model.heads=1", "model.width=33"],
            "--set model.width=33: model.width: 33 is odd: a time becomes as many sines as cosines; give an even number",
        ),
        (
            &["model.positions=rotary"],
            "a vla's positions are learned: not only tokens have them; choose learned",
        ),
        (
            &["data.path=/tmp"],
            "an arm is simulated by the program, not read from a file; set it to embedded:reach",
        ),
        (&["data.augment=true"], "only images can be augmented; set it to false"),
    ];
    for (sets, expected) in cases {
        let message = error(sets);
        assert!(message.ends_with(expected), "{message}");
    }
    assert!(Folder::new(&[]).load(&[], &[&base[..], &["model.fm_weight=0"]].concat()).is_ok());
}

#[test]
fn sizes_that_overflow() {
    let sets = ["model.width=1048576", "model.layers=65536", "model.heads=1"];
    let error = Folder::new(&[]).error(&[], &sets);
    assert_eq!(
        error,
        "--set model.width=1048576: model.width: the parameters' size overflows; lower model.width or model.layers"
    );
    let sets = ["model.context=1048576", "batch.micro_batch_size=1048576"];
    assert!(Folder::new(&[]).error(&[], &sets).contains("the size of a micro-batch's activations overflows"));
}

#[test]
fn a_configuration_that_came_from_elsewhere_is_checked_too() {
    let mut config = load(&[], &[], &environment).unwrap().config;
    config.optim.lr = f64::NAN;
    config.optim.clip_norm = Some(f64::NAN);
    config.optim.betas[1] = f64::INFINITY;
    config.model.heads = 0;
    let problems = crate::config::validate(&config).unwrap_err();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    for key in ["optim.lr", "optim.clip_norm", "optim.betas", "model.heads"] {
        assert!(keys.contains(&key), "{key} in {keys:?}");
    }
}

#[test]
fn worlds() {
    let check = |sets: &[&str], ranks: usize| {
        let resolved = Folder::new(&[]).load(&[], sets).unwrap();
        resolved.validate_world(ranks).map_err(|error| without_base_lines(&error.to_string()))
    };
    assert_eq!(check(&[], 1), Ok(()));
    assert_eq!(check(&[], 8), Ok(()));
    assert_eq!(
        check(&[], 9),
        Err("embedded base.yaml:<line>: batch.micro_batches: 8 micro-batches cannot be shared by 9 ranks; set it to at \
             least 9 (it changes the result), or start fewer ranks"
            .into())
    );
    assert_eq!(check(&["parallel.strategy=single"], 1), Ok(()));
    assert_eq!(
        check(&["parallel.strategy=single"], 2),
        Err("--set parallel.strategy=single: parallel.strategy: single is for one rank, but there are 2; choose ddp or \
             zero1, or start one process"
            .into())
    );
    assert_eq!(
        check(&["parallel.backend=solo"], 2),
        Err("--set parallel.backend=solo: parallel.backend: solo is for one rank, but there are 2; choose auto or mpi, \
             or start one process"
            .into())
    );
}

#[test]
fn variables_that_are_not_set() {
    assert_eq!(
        error_of("run:\n  dir: ${NO_SUCH}/runs\n"),
        "c.yaml:3: run.dir: the environment variable NO_SUCH is not set; set it, or write ${NO_SUCH:-default}"
    );
    assert_eq!(
        error_of_set("run.dir=$HOME/x"),
        "--set run.dir=$HOME/x: run.dir: `$HOME` is not expanded without braces; write ${HOME}, or $$ for a dollar sign"
    );
}
