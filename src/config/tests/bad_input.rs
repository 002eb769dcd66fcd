//! Files and flags that cannot be read: the exact message of each.

use super::*;

#[test]
fn not_a_file() {
    let folder = Folder::new(&[]);
    assert_eq!(
        folder.error(&["none.yaml"], &[]),
        "--config: there is no configuration file none.yaml; give a file that exists, or one of the program's own: \
         base.yaml, bench-10m.yaml, bench-30m.yaml, bench-resnet.yaml, bpe.yaml, demo.yaml, gpt-10m.yaml, gpt-30m.yaml, \
         resnet-tiny.yaml, rotary.yaml, sgd.yaml, tiny.yaml, vla-tiny.yaml"
    );
    std::fs::create_dir(folder.path("folder.yaml")).unwrap();
    assert!(
        folder.error(&["folder.yaml"], &[]).ends_with("folder.yaml is not a regular file; give a YAML file")
    );
}

#[test]
fn a_device_that_never_ends_is_not_read() {
    let error = load(&["/dev/zero".into()], &[], &environment).unwrap_err();
    assert_eq!(error.to_string(), "/dev/zero is not a regular file; give a YAML file");
}

#[test]
fn not_utf_8() {
    let folder = Folder::new(&[]);
    folder.write("c.yaml", b"extends: base.yaml\nrun: { name: \xff }\n");
    assert_eq!(folder.error(&["c.yaml"], &[]), "c.yaml:2: not UTF-8 text; save the file as UTF-8");
}

#[test]
fn a_byte_order_mark_and_crlf_are_harmless() {
    let folder = Folder::new(&[("c.yaml", "\u{feff}extends: base.yaml\r\nrun:\r\n  name: a b\r\n")]);
    assert_eq!(folder.load(&["c.yaml"], &[]).unwrap().config.run.name, "a b");
}

#[test]
fn not_yaml() {
    assert_eq!(
        error_of("run: [1, 2\nmodel: {}\n"),
        "c.yaml:3: not YAML: illegal placement of ':' indicator; check the indentation, the colons and the brackets there"
    );
    assert_eq!(
        error_of("run: { dir: ${HOME:-x}/runs }\n"),
        "c.yaml:2: not YAML: while parsing a flow mapping, did not find expected ',' or '}'; inside { } and [ ], put \
         values with ${...} between quotes"
    );
}

#[test]
fn not_a_mapping() {
    let remedy = "not a mapping; write sections and keys, such as `optim: { lr: 1.0e-3 }`";
    for (text, what) in
        [("", "nothing"), ("# only a comment\n", "nothing"), ("- a\n", "a list"), ("x\n", "a single value")]
    {
        let folder = Folder::new(&[("c.yaml", text)]);
        assert_eq!(folder.error(&["c.yaml"], &[]), format!("c.yaml:1: the file holds {what}, {remedy}"));
    }
}

#[test]
fn too_large() {
    let folder = Folder::new(&[("c.yaml", &"#".repeat((1 << 20) + 1))]);
    assert_eq!(
        folder.error(&["c.yaml"], &[]),
        "c.yaml is larger than 1048576 bytes; give a YAML file of keys and values; data belong elsewhere"
    );
}

#[test]
fn nested_without_end() {
    let deep =
        "c.yaml:2: nested more than 32 levels deep; a configuration has sections and keys, nothing deeper";
    assert_eq!(error_of(&format!("run: {}", "[".repeat(500_000))), deep);
    assert_eq!(error_of(&format!("run: {}", "{a: ".repeat(200_000))), deep);
    let blocks: String = (0..600).map(|depth| " ".repeat(depth) + "a:\n").collect();
    assert!(error_of(&blocks).contains("nested more than 32 levels deep"));
    assert!(error_of(&"- ".repeat(400_000)).contains("; "), "any message will do, but there is one");
    assert!(error_of(&format!("run: {}", "? ".repeat(400_000))).contains("; "));
}

#[test]
fn too_many_values() {
    let many: String = (0..20_000).map(|index| format!("k{index}: 1\n")).collect();
    let error = error_of(&many);
    assert!(error.ends_with("more than 10000 values; check that this file is a configuration"), "{error}");
}

#[test]
fn anchors_aliases_and_tags() {
    let remedy = "write the value out, or use `extends:`";
    assert_eq!(
        error_of("run: &a { name: x }\n"),
        format!("c.yaml:2: YAML anchors (&) and aliases (*) are not supported; {remedy}")
    );
    let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n";
    assert!(error_of(bomb).starts_with("c.yaml:2: YAML anchors"));
    assert_eq!(
        error_of("run:\n  seed: !!int 3\n"),
        "c.yaml:3: YAML tags (!) are not supported; remove the tag, or quote the value"
    );
}

#[test]
fn a_key_twice() {
    assert_eq!(
        error_of("run:\n  name: a\n  seed: 1\n  name: b\n"),
        "c.yaml:5: the key `name` stands twice, first on line 3; keep one of the two"
    );
}

#[test]
fn two_documents() {
    assert_eq!(
        error_of("---\nrun: { name: b }\n"),
        "c.yaml:2: a second YAML document begins here; keep one document a file; `extends: [a.yaml, b.yaml]` combines \
         files"
    );
}

#[test]
fn complex_keys() {
    let remedy = "keys are plain words; quote values that begin with { or [";
    assert_eq!(
        error_of("? [a, b]\n: 1\n"),
        format!("c.yaml:2: a mapping or a list is used as a key; {remedy}")
    );
}

#[test]
fn flags() {
    assert_eq!(error_of_set("optim.lr"), "--set optim.lr: there is no `=` in it; write --set optim.lr=VALUE");
    assert_eq!(
        error_of_set("optim.lrr=1"),
        "--set optim.lrr=1: optim.lrr: unknown key; did you mean optim.lr?"
    );
    assert!(error_of_set("optim.betas=[0.9").starts_with("--set optim.betas=[0.9: not YAML: "));
    assert!(error_of_set("=1").starts_with("--set =1: "));
    assert!(error_of_set("extends=base.yaml").starts_with("--set extends=base.yaml: extends: unknown key; "));
    let endless = "a.".repeat(100_000) + "=1";
    assert!(error_of_set(&endless).len() < 600);
}
