//! Prompts kept in files.

use crate::fixture::*;
use convert::ExpertLayout::Stacked;
use quants::TensorType;
use runtime::{Kernels, Logits, Model, ModelOptions, Session, SessionOptions};
use std::fs;
use std::sync::Arc;

fn model(file_type: &str) -> Arc<Model> {
    let file = tiny_moe(file_type, Stacked);
    load(&file.path, &ModelOptions { kernels: Some(Kernels::Bruce), ..plain() })
}

fn with_cache(model: &Arc<Model>, type_k: TensorType, n_ctx: u32) -> Session {
    Session::new(model, &SessionOptions { type_k, n_ctx, ..session_options() }).expect("a session")
}

#[test]
fn a_prompt_from_a_file_goes_on_bit_by_bit_as_one_that_was_read() {
    let model = model("q4_k");
    let ids = prompt(&model);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("prompt.cache");
    for type_k in [TensorType::F16, TensorType::Q8_0] {
        let mut whole = with_cache(&model, type_k, 512);
        whole.decode(&ids, Logits::Last).expect("read");
        let (before, after) = ids.split_at(ids.len() / 2);
        whole.save_prompt(&path, before).expect("saved");

        // A context of another size, in which something else was said.
        let mut loaded = with_cache(&model, type_k, 256);
        loaded.decode(&[7, 8, 9], Logits::None).expect("read");
        assert_eq!(loaded.load_prompt(&path).expect("loaded").as_deref(), Some(before));
        assert_eq!(loaded.n_past(), before.len());
        loaded.decode(after, Logits::Last).expect("read");
        let bits = |session: &Session| session.logits(0).iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&whole), bits(&loaded), "{}", type_k.name());
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "something hidden is left");
}

#[test]
fn no_file_and_an_empty_one_are_an_empty_context() {
    let model = model("q4_k");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("prompt.cache");
    let mut session = session(&model);
    assert_eq!(session.load_prompt(&path).expect("nothing"), None);
    fs::write(&path, "").expect("a file");
    assert_eq!(session.load_prompt(&path).expect("nothing"), None);
    assert!(session.load_prompt(folder.path()).is_err(), "a folder is no file");
}

#[test]
fn files_that_do_not_fit_are_refused_with_the_field_that_says_so() {
    let model = model("q4_k");
    let ids = prompt(&model);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("prompt.cache");
    let mut writer = session(&model);
    writer.decode(&ids, Logits::None).expect("read");
    writer.save_prompt(&path, &ids).expect("saved");
    let good = fs::read(&path).expect("a file");
    let refuse = |session: &mut Session, bytes: &[u8], field: &str| {
        fs::write(&path, bytes).expect("a file");
        session.decode(&ids[..2], Logits::None).expect("read");
        let error = session.load_prompt(&path).expect_err(field).to_string();
        let expected = format!("{}: prompt cache: {field}: found ", path.display());
        assert!(error.starts_with(&expected), "found {error}, expected {expected}");
        assert_eq!(session.n_past(), 0, "{field}");
    };
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= byte;
        bytes
    };
    let mut reader = session(&model);
    for len in [1, 8, 35, 43] {
        refuse(&mut reader, &good[..len], "size");
    }
    for len in [44, 60, good.len() - 9, good.len() - 1] {
        refuse(&mut reader, &good[..len], "size");
    }
    refuse(&mut reader, &[&good[..], &[0]].concat(), "size");
    refuse(&mut reader, &changed(0, 1), "magic");
    refuse(&mut reader, &changed(8, 2), "version");
    refuse(&mut reader, &changed(12, 1), "model and options");
    refuse(&mut reader, &changed(28, 1), "size");
    refuse(&mut reader, &changed(35, 0x80), "tokens");
    refuse(&mut reader, &changed(39, 0x80), "tokens");
    for at in [36, 36 + 4 * ids.len(), good.len() - 9, good.len() - 1] {
        // A token that stays in the vocabulary is found by the checksum too.
        refuse(&mut reader, &changed(at, 1), "checksum");
    }
    refuse(&mut with_cache(&model, TensorType::Q8_0, 512), &good, "type of keys");
    let other = self::model("q8_0");
    refuse(&mut session(&other), &good, "model and options");
    let file = tiny_moe("q4_k", Stacked);
    let slower = rewrite(
        &file.path,
        |metadata| metadata.set(model_spec::keys::ROPE_FREQ_BASE, 12345.0_f32),
        |_| Edit::Keep,
    );
    let slower = load(&slower.path, &ModelOptions { kernels: Some(Kernels::Bruce), ..plain() });
    refuse(&mut session(&slower), &good, "model and options");
    fs::write(&path, &good).expect("a file");
    assert!(reader.load_prompt(&path).expect("the good one").is_some());
}

#[test]
fn a_file_that_can_not_be_replaced_stays_as_it_was() {
    let model = model("q4_k");
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("missing").join("prompt.cache");
    let mut session = session(&model);
    session.decode(&[1, 2], Logits::None).expect("read");
    assert!(session.save_prompt(&target, &[1, 2]).is_err());
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
