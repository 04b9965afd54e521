use serde_json::json;

use crate::fixture::{Fixture, Tensor, shard, split_experts, tensor};

/// A Mixtral in two shards with an index, which `change` may alter.
fn sharded(change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> Fixture {
    let fixture = Fixture::empty();
    let tensors = split_experts(2);
    let (first, second) = tensors.split_at(10);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut map = serde_json::Map::new();
    for (name, tensors) in names.iter().zip([first, second]) {
        fixture.write(name, &shard(tensors));
        map.extend(tensors.iter().map(|t: &Tensor| (t.name.clone(), json!(name))));
    }
    change(&mut map);
    fixture.write_json("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": map}));
    fixture
}

#[test]
fn shards_with_an_index() {
    let checkpoint = sharded(|_| {}).open().unwrap();
    assert_eq!(checkpoint.shards().len(), 2);
    assert_eq!(checkpoint.weights().len(), split_experts(2).len());
}

#[test]
fn numbered_shards_without_an_index() {
    let fixture = sharded(|_| {});
    std::fs::remove_file(fixture.file("model.safetensors.index.json")).unwrap();
    assert_eq!(fixture.open().unwrap().shards().len(), 2);
    std::fs::remove_file(fixture.file("model-00001-of-00002.safetensors")).unwrap();
    let text = fixture.error();
    assert!(text.contains("missing \"model-00001-of-00002.safetensors\", expected all 2"), "{text}");
}

#[test]
fn index_names_a_parent_directory() {
    for name in ["../model.safetensors", "sub/../../x.safetensors", "./model.safetensors", ""] {
        let text = sharded(|map| {
            map.insert("lm_head.weight".into(), json!(name));
        })
        .error();
        let found = format!("index.json: weight_map: \"lm_head.weight\": found \"{name}\"");
        assert!(text.contains(&found), "{text}");
    }
}

#[test]
fn index_names_an_absolute_path() {
    let text = sharded(|map| {
        map.insert("lm_head.weight".into(), json!("/etc/passwd"));
    })
    .error();
    assert!(
        text.contains("found \"/etc/passwd\", expected a name inside the checkpoint directory"),
        "{text}"
    );
}

#[cfg(unix)]
#[test]
fn a_symlink_that_leads_outside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("weights.safetensors");
    let fixture = Fixture::empty();
    std::fs::write(&target, shard(&split_experts(2))).unwrap();
    std::os::unix::fs::symlink(&target, fixture.file("model.safetensors")).unwrap();
    let text = fixture.error();
    assert!(text.contains("model.safetensors: file: found a link to"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_symlink_that_stays_inside() {
    let fixture = Fixture::mixtral();
    std::fs::rename(fixture.file("model.safetensors"), fixture.file("blob")).unwrap();
    std::os::unix::fs::symlink("blob", fixture.file("model.safetensors")).unwrap();
    fixture.open().unwrap();
}

#[cfg(unix)]
#[test]
fn the_hub_cache_links_to_its_blobs() {
    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("models--org--name");
    let snapshot = model.join("snapshots/0123");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(model.join("blobs")).unwrap();
    let fixture = Fixture::mixtral();
    fixture.open().unwrap();
    for name in ["config.json", "tokenizer.model", "model.safetensors"] {
        std::fs::copy(fixture.file(name), model.join("blobs").join(format!("hash-{name}"))).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/hash-{name}"), snapshot.join(name)).unwrap();
    }
    let checkpoint = crate::Checkpoint::open(&snapshot).unwrap();
    assert_eq!(checkpoint.card().name, "Name", "a revision is no name");
    assert_eq!(crate::hub_cache_of(&snapshot), Some(model.as_path()));
    // What a download that was broken off leaves.
    std::fs::remove_file(model.join("blobs/hash-model.safetensors")).unwrap();
    let text = crate::Checkpoint::open(&snapshot).unwrap_err().to_string();
    assert!(text.contains("model.safetensors: file: found a link to nothing"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_fifo_as_shard_is_refused_at_once() {
    let fixture = Fixture::empty();
    let made = std::process::Command::new("mkfifo").arg(fixture.file("model.safetensors")).status();
    assert!(made.is_ok_and(|status| status.success()));
    let text = fixture.error();
    assert!(text.contains("model.safetensors: file: found a FIFO, expected a regular file"), "{text}");
}

#[test]
fn a_directory_as_shard() {
    let fixture = Fixture::empty();
    std::fs::create_dir(fixture.file("model.safetensors")).unwrap();
    assert!(fixture.error().contains("found a directory"), "{}", fixture.error());
}

#[test]
fn missing_shards_are_all_listed() {
    let fixture = sharded(|map| {
        for (tensor, name) in [("lm_head.weight", "a.safetensors"), ("model.norm.weight", "b.safetensors")] {
            map.insert(tensor.into(), json!(name));
        }
    });
    let text = fixture.error();
    assert_eq!(
        text,
        "model.safetensors.index.json: shards: missing \"a.safetensors\", \"b.safetensors\", expected all 4 beside it"
    );
}

#[test]
fn a_tensor_in_two_shards() {
    let fixture = sharded(|_| {});
    let mut second = split_experts(2).split_off(10);
    second.push(tensor("model.norm.weight", &[4]));
    fixture.write("model-00002-of-00002.safetensors", &shard(&second));
    let text = fixture.error();
    assert!(
        text.contains(
            "tensor \"model.norm.weight\": found the same name in \"model-00001-of-00002.safetensors\""
        ),
        "{text}"
    );
}

#[test]
fn a_tensor_in_no_shard() {
    let text = sharded(|map| {
        map.insert("model.layers.9.x".into(), json!("model-00002-of-00002.safetensors"));
    })
    .error();
    assert!(text.contains("1 tensors that no shard holds: \"model.layers.9.x\""), "{text}");
}

#[test]
fn a_tensor_that_the_index_leaves_out() {
    let text = sharded(|map| {
        map.remove("lm_head.weight");
    })
    .error();
    assert!(text.contains("1 tensors of the shards left out: \"lm_head.weight\""), "{text}");
}

#[test]
fn a_tensor_that_the_index_puts_elsewhere() {
    let text = sharded(|map| {
        map.insert("lm_head.weight".into(), json!("model-00002-of-00002.safetensors"));
    })
    .error();
    assert!(
        text.contains("weight_map: \"lm_head.weight\": found \"model-00002-of-00002.safetensors\""),
        "{text}"
    );
}

#[test]
fn an_index_that_is_none() {
    let fixture = Fixture::mixtral();
    for (text, part) in [
        ("{}", "weight_map: found no such key"),
        (r#"{"weight_map": []}"#, "weight_map: found an array of 0"),
        (r#"{"weight_map": {}}"#, "weight_map: found no tensors"),
        (r#"{"weight_map": {"a": 1}}"#, "weight_map: \"a\": found 1"),
        (r#"{"weight_map": {"a": "x", "a": "y"}}"#, "duplicate key \"a\""),
    ] {
        fixture.write("model.safetensors.index.json", text.as_bytes());
        assert!(fixture.error().contains(part), "{}", fixture.error());
    }
}

#[test]
fn pickle_files_only() {
    let fixture = Fixture::empty();
    fixture.write("pytorch_model-00001-of-00001.bin", b"PK");
    let text = fixture.error();
    assert!(text.contains("found only \"pytorch_model-00001-of-00001.bin\", expected safetensors"), "{text}");
    assert!(text.contains("safe_serialization"), "{text}");
}

#[test]
fn no_weights_at_all() {
    let fixture = Fixture::empty();
    assert!(fixture.error().contains("weights: found no safetensors file"), "{}", fixture.error());
    fixture.write("consolidated.safetensors", b"");
    assert!(fixture.error().contains("weights: found \"consolidated.safetensors\""), "{}", fixture.error());
}

#[test]
fn a_shard_that_was_cut_off() {
    let fixture = Fixture::mixtral();
    let bytes = std::fs::read(fixture.file("model.safetensors")).unwrap();
    fixture.write("model.safetensors", &bytes[..bytes.len() - 1]);
    assert!(fixture.error().contains("truncated"), "{}", fixture.error());
}

#[test]
fn a_shard_that_shrinks_after_opening() {
    let fixture = Fixture::mixtral();
    let checkpoint = fixture.open().unwrap();
    let file = std::fs::File::options().write(true).open(fixture.file("model.safetensors")).unwrap();
    file.set_len(100).unwrap();
    let (_, weight) = checkpoint.weights().last().unwrap();
    let text = checkpoint.read(weight, 0, &mut [0; 4]).unwrap_err().to_string();
    assert!(text.contains("model.safetensors: cannot read weights"), "{text}");
}

#[test]
fn a_file_instead_of_a_directory() {
    let fixture = Fixture::mixtral();
    let text = crate::Checkpoint::open(fixture.file("model.safetensors")).unwrap_err().to_string();
    assert!(text.contains("found a file, expected a directory"), "{text}");
    let text = crate::Checkpoint::open(fixture.file("nowhere")).unwrap_err().to_string();
    assert!(text.contains("nowhere: cannot open: "), "{text}");
}
