//! The chain as a whole: determinism, defaults, statistics.

use super::*;

fn logits(p: &[f32]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

fn draw(params: Params, logits: &[f32], n: usize) -> Vec<TokenId> {
    let mut sampler = Sampler::new(params, logits.len()).unwrap();
    (0..n).map(|_| sampler.sample(logits).unwrap()).collect()
}

/// Parameters under which every token keeps its own probability.
fn plain(seed: u32) -> Params {
    Params { seed: Some(seed), temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Params::default() }
}

#[test]
fn frequencies_follow_the_probabilities() {
    let p = [0.5, 0.25, 0.125, 0.0625, 0.0625];
    let n = 40_000;
    let mut counts = [0f64; 5];
    for id in draw(plain(42), &logits(&p), n) {
        counts[id as usize] += 1.0;
    }
    let chi2: f64 = counts
        .iter()
        .zip(p)
        .map(|(c, p)| (c - n as f64 * f64::from(p)).powi(2) / (n as f64 * f64::from(p)))
        .sum();
    // Four degrees of freedom: 23.5 is passed once in ten thousand seeds.
    assert!(chi2 < 23.5, "chi2 = {chi2}, counts = {counts:?}");
}

#[test]
fn temperature_changes_the_ratio_as_a_power() {
    // At temperature 0.5 the ratio 3:1 becomes 9:1.
    let n = 40_000;
    let ids = draw(Params { temperature: 0.5, ..plain(7) }, &logits(&[0.75, 0.25]), n);
    let share = ids.iter().filter(|&&id| id == 0).count() as f64 / n as f64;
    assert!((share - 0.9).abs() < 0.006, "{share}");
}

#[test]
fn a_seed_fixes_the_sequence() {
    let l = logits(&[0.3, 0.3, 0.2, 0.2]);
    assert_eq!(draw(plain(1), &l, 100), draw(plain(1), &l, 100));
    assert_ne!(draw(plain(1), &l, 100), draw(plain(2), &l, 100));
    let mut sampler = Sampler::new(plain(1), 4).unwrap();
    let first: Vec<_> = (0..20).map(|_| sampler.sample(&l).unwrap()).collect();
    sampler.reset();
    let again: Vec<_> = (0..20).map(|_| sampler.sample(&l).unwrap()).collect();
    assert_eq!(first, again);
}

#[test]
fn a_random_seed_can_be_used_again() {
    let l = vec![0.0; 1000];
    let mut first = Sampler::new(Params { seed: None, ..plain(0) }, 1000).unwrap();
    let mut second = Sampler::new(plain(first.seed()), 1000).unwrap();
    for _ in 0..10 {
        assert_eq!(first.sample(&l), second.sample(&l));
    }
    let other = Sampler::new(Params::default(), 1000).unwrap();
    let third = Sampler::new(Params::default(), 1000).unwrap();
    assert!(other.seed() != third.seed() || other.seed() != first.seed());
}

#[test]
fn temperature_zero_takes_the_first_maximum() {
    let mut sampler = Sampler::new(Params::greedy(), 4).unwrap();
    assert_eq!(sampler.sample(&[0.0, 5.0, 5.0, 4.0]), Ok(1));
    let negative = Params { temperature: -1.0, ..Params::default() };
    assert_eq!(draw(negative, &[0.0, 5.0, 5.0, 4.0], 3), [1, 1, 1]);
}

#[test]
fn greedy_still_applies_penalties_and_bias() {
    let params = Params { repeat_penalty: 4.0, ..Params::greedy() };
    let mut sampler = Sampler::new(params, 3).unwrap();
    assert_eq!(sampler.sample(&[1.0, 3.0, 2.0]), Ok(1));
    sampler.accept(1);
    assert_eq!(sampler.sample(&[1.0, 3.0, 2.0]), Ok(2));
    let params = Params { logit_bias: vec![(1, f32::NEG_INFINITY)], ..Params::greedy() };
    assert_eq!(draw(params, &[1.0, 3.0, 2.0], 1), [2]);
}

#[test]
fn greedy_without_a_temperature_stage_samples() {
    let params = Params { temperature: 0.0, chain: vec![], ..plain(3) };
    let ids = draw(params, &logits(&[0.5, 0.5]), 200);
    assert!(ids.contains(&0) && ids.contains(&1));
}

#[test]
fn typical_at_temperature_zero_may_drop_the_likeliest() {
    let params = Params { typical_p: 0.5, temperature: 0.0, ..plain(3) };
    assert_ne!(draw(params, &logits(&[0.4, 0.2, 0.2, 0.2]), 1), [0]);
}

#[test]
fn the_default_chain_keeps_only_what_its_limits_allow() {
    // top-p 0.95 would keep the first three; min-p 0.05 drops the third, of probability below 0.05 * 0.9.
    let ids = draw(Params { seed: Some(5), ..Params::default() }, &logits(&[0.9, 0.049, 0.04, 0.011]), 5000);
    assert!(ids.contains(&1));
    assert!(!ids.contains(&2) && !ids.contains(&3));
}

#[test]
fn order_of_the_chain_matters() {
    // Flat at temperature 100: min-p after it keeps everything, before it only the likeliest.
    let l = logits(&[0.97, 0.01, 0.01, 0.01]);
    let hot = Params { temperature: 100.0, min_p: 0.5, ..plain(11) };
    let after = Params { chain: vec![Stage::Temperature, Stage::MinP], ..hot.clone() };
    let before = Params { chain: vec![Stage::MinP, Stage::Temperature], ..hot };
    assert!(draw(after, &l, 200).contains(&3));
    assert!(draw(before, &l, 200).iter().all(|&id| id == 0));
}

#[test]
fn lists_of_stages_in_llama_cpp_spellings() {
    let default = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature";
    assert_eq!(Stage::parse_list(default).unwrap(), DEFAULT_CHAIN);
    assert_eq!(Stage::parse_letters("edskypmxt").unwrap(), DEFAULT_CHAIN);
    assert_eq!(
        Stage::parse_list("temp;top-k;nucleus").unwrap(),
        [Stage::Temperature, Stage::TopK, Stage::TopP]
    );
    let error = Stage::parse_list("top_k;mirostat").unwrap_err().to_string();
    assert!(error.contains("\"mirostat\"") && error.contains("min_p"), "{error}");
    assert!(Stage::parse_letters("k?").is_err());
    for stage in DEFAULT_CHAIN {
        assert_eq!(Stage::parse_list(stage.name()).unwrap(), [stage]);
    }
}

#[test]
fn bad_parameters_and_logits_are_refused() {
    let bad = [
        Params { temperature: f32::NAN, ..Params::default() },
        Params { top_p: f32::INFINITY, ..Params::default() },
        Params { repeat_penalty: 0.0, ..Params::default() },
        Params { repeat_penalty: -1.0, ..Params::default() },
        Params { logit_bias: vec![(10, 1.0)], ..Params::default() },
        Params { logit_bias: vec![(1, f32::NAN)], ..Params::default() },
    ];
    for params in bad {
        assert!(matches!(Sampler::new(params.clone(), 10), Err(Error::Parameter { .. })), "{params:?}");
    }
    for params in [Params::default(), Params::greedy()] {
        let mut sampler = Sampler::new(params, 3).unwrap();
        assert_eq!(sampler.sample(&[0.0; 2]), Err(Error::Length { found: 2, expected: 3 }));
        assert!(matches!(sampler.sample(&[0.0, f32::NAN, 0.0]), Err(Error::NotFinite { id: 1, .. })));
        assert!(matches!(sampler.sample(&[0.0, 0.0, f32::INFINITY]), Err(Error::NotFinite { id: 2, .. })));
        assert!(matches!(sampler.sample(&[f32::NEG_INFINITY; 3]), Err(Error::NotFinite { .. })));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, f32::NEG_INFINITY, -1e30]), Ok(2));
    }
}

#[test]
fn draws_equal_those_of_the_cpp_generator() {
    // std::mt19937(1234) through std::uniform_real_distribution<double>(0, 1), as a C++ program prints its first
    // eight draws: 0.4976 0.8178 0.6121 0.7713 0.8606 0.1506 0.1985 0.8151, so these tenths of the interval.
    assert_eq!(draw(plain(1234), &[0.0; 10], 8), [4, 8, 6, 7, 8, 1, 1, 8]);
}
