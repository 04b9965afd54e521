//! Contexts in files: what comes back, and what is refused.

use crate::fixture::*;
use convert::ExpertLayout::Stacked;
use quants::TensorType;
use runtime::{Error, Kernels, Logits, ModelOptions, Session, SessionOptions};
use std::fs;
use std::path::PathBuf;

/// A session that has read the prompt, and the file it was saved to.
fn saved(folder: &tempfile::TempDir, model: &std::sync::Arc<runtime::Model>) -> (Session, Vec<u32>, PathBuf) {
    let ids = prompt(model);
    let mut session = session(model);
    session.decode(&ids, Logits::None).expect("read");
    let path = folder.path().join("context");
    session.save(&ids, &path).expect("saved");
    (session, ids, path)
}

#[test]
fn a_restored_context_goes_on_with_the_same_bits() {
    let (folder, file) = (tempfile::tempdir().expect("a folder"), tiny_moe("q8_0", Stacked));
    let model = load(&file.path, &plain());
    let (mut first, ids, path) = saved(&folder, &model);
    first.decode(&[7, 8], Logits::All).expect("read");
    let mut second = session(&model);
    second.decode(&[1, 2, 3], Logits::None).expect("something to be replaced");
    assert_eq!(second.restore(&path).expect("restored"), ids);
    assert_eq!(second.n_past(), ids.len());
    second.decode(&[7, 8], Logits::All).expect("read");
    assert_eq!(first.all_logits(2), second.all_logits(2));
}

#[test]
fn a_part_is_saved_and_a_smaller_context_takes_what_it_has_room_for() {
    let (folder, file) = (tempfile::tempdir().expect("a folder"), tiny_moe("q8_0", Stacked));
    let model = load(&file.path, &plain());
    let path = folder.path().join("context");
    let long: Vec<u32> = (0..300).map(|i| 3 + i % 50).collect();
    let mut large = Session::new(&model, &SessionOptions { n_ctx: 512, ..session_options() }).expect("room");
    large.decode(&long, Logits::None).expect("read");
    large.save(&long[..290], &path).expect("saved");
    let mut small = Session::new(&model, &SessionOptions { n_ctx: 256, ..session_options() }).expect("room");
    assert_eq!(small.restore(&path).expect("restored"), long[..256]);
    small.truncate(200);
    large.truncate(200);
    small.decode(&[9], Logits::Last).expect("read");
    large.decode(&[9], Logits::Last).expect("read");
    assert_eq!(small.logits(0), large.logits(0));
}

/// Cells lie in another order on devices, but not in files.
#[test]
fn what_the_host_saved_a_device_restores_and_the_other_way_round() {
    let (folder, file) = (tempfile::tempdir().expect("a folder"), tiny_moe("q8_0", Stacked));
    let host = load(&file.path, &ModelOptions { kernels: Some(Kernels::Ggml), ..plain() });
    let device = load(&file.path, &on_device(stand_in(64 << 20), |_| {}));
    let ids: Vec<u32> = (0..300).map(|i| 3 + i % 50).collect();
    let of =
        |model, n_ctx| Session::new(model, &SessionOptions { n_ctx, ..session_options() }).expect("room");
    let mut saved = Vec::new();
    for (model, other) in [(&host, &device), (&device, &host)] {
        let path = folder.path().join("context");
        let mut first = of(model, 512);
        first.decode(&ids, Logits::None).expect("read");
        first.save(&ids, &path).expect("saved");
        saved.push(fs::read(&path).expect("a file"));
        for n_ctx in [512, 256] {
            let mut second = of(other, n_ctx);
            assert_eq!(second.restore(&path).expect("restored"), ids[..ids.len().min(n_ctx as usize)]);
            for session in [&mut first, &mut second] {
                session.truncate(250);
                session.decode(&[7, 8, 9], Logits::All).expect("read");
            }
            assert_eq!(first.all_logits(3), second.all_logits(3), "{n_ctx} cells");
        }
    }
    assert!(saved[0] == saved[1], "the files differ");
}

#[test]
fn damage_is_named_and_leaves_an_empty_context_that_works() {
    let (folder, file) = (tempfile::tempdir().expect("a folder"), tiny_moe("q8_0", Stacked));
    let model = load(&file.path, &plain());
    let (_, _, path) = saved(&folder, &model);
    let whole = fs::read(&path).expect("a file");
    let expected = answers(&model, &mut session(&model));
    let mut session = session(&model);
    let mut refused = |bytes: &[u8], field: &str| {
        fs::write(&path, bytes).expect("written");
        match session.restore(&path) {
            Err(Error::SavedContext { field: found, path: named, .. }) => {
                assert_eq!((found, &named), (field, &path));
            }
            other => panic!("{field}: {other:?}"),
        }
        assert_eq!(session.n_past(), 0);
        assert_eq!(answers(&model, &mut session), expected, "after a wrong {field}");
        session.truncate(0);
    };
    for length in [0, 63, 95, 96, whole.len() - 1] {
        refused(&whole[..length], "size");
    }
    refused(&[&whole[..], &[0]].concat(), "size");
    for (at, field) in [
        (0, "magic"),
        (8, "version"),
        (12, "number of layers"),
        (16, "type of keys"),
        (20, "type of values"),
        (24, "size"),
        (31, "size"),
        (32, "model"),
        (66, "tokens"),
        (whole.len() / 2, "contents"),
        (whole.len() - 1, "contents"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        refused(&bytes, field);
    }
}

#[test]
fn another_model_or_another_cache_is_refused() {
    let (folder, file) = (tempfile::tempdir().expect("a folder"), tiny_moe("q8_0", Stacked));
    let model = load(&file.path, &plain());
    let (_, _, path) = saved(&folder, &model);
    let field = |session: &mut Session| match session.restore(&path) {
        Err(Error::SavedContext { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let types = SessionOptions { type_k: TensorType::Q8_0, ..session_options() };
    assert_eq!(field(&mut Session::new(&model, &types).expect("a session")), "type of keys");
    let other = tiny_moe("q6_k", Stacked);
    assert_eq!(field(&mut session(&load(&other.path, &plain()))), "model");
    let three = runtime::ModelOptions { n_expert_used: Some(3), ..plain() };
    assert_eq!(field(&mut session(&load(&file.path, &three))), "model");
    let missing = session(&model).restore(&folder.path().join("nowhere"));
    assert!(matches!(missing, Err(Error::Gguf(_))), "{missing:?}");
}
