//! Which of several sizes each tensor takes, so that all together fit a number of bytes at the least cost.
//!
//! This is the multiple-choice knapsack. Of each item only the options on the lower convex hull of cost over bytes are
//! worth their bytes at some price; from the smallest of each on, the step that saves the most cost for a byte comes
//! first. That is the best choice for every sum of bytes at which it stops; where the next step does not fit, smaller ones
//! behind it are tried, and then every single option and every exchange between two items that still lowers the cost. What
//! is lost against the best choice is at most the saving of the step that did not fit.

/// One way to store an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Choice {
    /// What it takes of the budget.
    pub bytes: u64,
    /// What it does to the result; finite, and smaller is better.
    pub cost: f64,
}

/// Even the smallest choices together exceed the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooSmall {
    /// Bytes of the smallest choices.
    pub minimum: u64,
}

/// The index of the choice made for each item. Equal items and steps are taken in their order, so that the result depends on
/// nothing but the arguments.
///
/// # Errors
/// There is no choice within the budget.
///
/// # Panics
/// When an item has no choices.
pub(crate) fn choose(items: &[Vec<Choice>], budget: u64) -> Result<Vec<usize>, TooSmall> {
    let hulls: Vec<Vec<usize>> = items.iter().map(|choices| hull(choices)).collect();
    let mut chosen: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let mut total: u64 = chosen.iter().zip(items).map(|(c, choices)| choices[*c].bytes).sum();
    if total > budget {
        return Err(TooSmall { minimum: total });
    }
    let mut steps: Vec<Step> = Vec::new();
    for (item, (hull, choices)) in hulls.iter().zip(items).enumerate() {
        for pair in hull.windows(2) {
            let (from, to) = (choices[pair[0]], choices[pair[1]]);
            let bytes = to.bytes - from.bytes;
            steps.push(Step { item, from: pair[0], to: pair[1], bytes, saving: from.cost - to.cost });
        }
    }
    // Stable, so an item's own steps stay in their order: a hull has falling slopes.
    steps.sort_by(|a, b| b.slope().total_cmp(&a.slope()));
    for step in steps {
        // A step that did not fit keeps those after it in the same item from applying.
        if chosen[step.item] == step.from && total + step.bytes <= budget {
            chosen[step.item] = step.to;
            total += step.bytes;
        }
    }
    refine(items, &mut chosen, total, budget);
    Ok(chosen)
}

struct Step {
    item: usize,
    from: usize,
    to: usize,
    bytes: u64,
    saving: f64,
}

impl Step {
    fn slope(&self) -> f64 {
        self.saving / self.bytes as f64
    }
}

/// The choices that are the best at some price of a byte, from the smallest to the dearest in bytes.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&choices[*a], &choices[*b]);
        a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost))
    });
    let slope = |a: usize, b: usize| {
        (choices[a].cost - choices[b].cost) / (choices[b].bytes - choices[a].bytes) as f64
    };
    let mut hull: Vec<usize> = Vec::new();
    for next in order {
        if hull.last().is_some_and(|last| choices[*last].cost <= choices[next].cost) {
            continue;
        }
        if hull.last().is_some_and(|last| choices[*last].bytes == choices[next].bytes) {
            continue;
        }
        while let [.., a, b] = hull[..]
            && slope(a, b) <= slope(b, next)
        {
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

/// Rounds of exchanges; each lowers the cost, and few are ever needed.
const MAX_ROUNDS: usize = 1000;

/// Lowers the cost by single changes and by exchanges between two items, as long as there are any within the budget.
fn refine(items: &[Vec<Choice>], chosen: &mut [usize], mut total: u64, budget: u64) {
    for _ in 0..MAX_ROUNDS {
        let Some((changes, bytes)) = best_exchange(items, chosen, total, budget) else { return };
        for (item, choice) in changes {
            chosen[item] = choice;
        }
        total = bytes;
    }
}

/// The change of one item, or of two, that lowers the cost most within the budget, and the bytes that come of it.
fn best_exchange(
    items: &[Vec<Choice>],
    chosen: &[usize],
    total: u64,
    budget: u64,
) -> Option<(Vec<(usize, usize)>, u64)> {
    // Every change of one item: bytes and cost that it adds.
    let mut larger: Vec<(usize, usize, u64, f64)> = Vec::new();
    let mut smaller: Vec<(usize, usize, u64, f64)> = Vec::new();
    for (item, choices) in items.iter().enumerate() {
        let now = choices[chosen[item]];
        for (choice, c) in choices.iter().enumerate() {
            if c.cost < now.cost && c.bytes >= now.bytes {
                larger.push((item, choice, c.bytes - now.bytes, now.cost - c.cost));
            } else if c.bytes <= now.bytes && choice != chosen[item] {
                smaller.push((item, choice, now.bytes - c.bytes, c.cost - now.cost));
            }
        }
    }
    let room = budget - total;
    // Of what gives so many bytes or more, the cheapest, and a second one of another item.
    smaller.sort_by(|a, b| b.2.cmp(&a.2).then(a.3.total_cmp(&b.3)).then(a.0.cmp(&b.0)));
    let mut cheapest: Vec<[Option<usize>; 2]> = Vec::with_capacity(smaller.len());
    let mut best: [Option<usize>; 2] = [None, None];
    for (i, change) in smaller.iter().enumerate() {
        let cost = |i: Option<usize>| i.map_or(f64::INFINITY, |i| smaller[i].3);
        if change.3 < cost(best[0]) {
            let other = best[0].filter(|i| smaller[*i].0 != change.0);
            best = [Some(i), other.or(best[1])];
        } else if change.3 < cost(best[1]) && best[0].is_none_or(|i| smaller[i].0 != change.0) {
            best[1] = Some(i);
        }
        cheapest.push(best);
    }
    let mut found: Option<(f64, Vec<(usize, usize)>, u64)> = None;
    let mut offer = |saving: f64, changes: Vec<(usize, usize)>, bytes: u64| {
        if saving > 0.0 && found.as_ref().is_none_or(|(most, ..)| saving > *most) {
            found = Some((saving, changes, bytes));
        }
    };
    for &(item, choice, bytes, saving) in &larger {
        if bytes <= room {
            offer(saving, vec![(item, choice)], total + bytes);
            continue;
        }
        let enough = smaller.partition_point(|change| change.2 >= bytes - room);
        let Some(last) = enough.checked_sub(1) else { continue };
        let partner = cheapest[last].iter().flatten().find(|i| smaller[**i].0 != item);
        if let Some(&(other, smaller_choice, freed, cost)) = partner.map(|i| &smaller[*i]) {
            offer(saving - cost, vec![(item, choice), (other, smaller_choice)], total + bytes - freed);
        }
    }
    found.map(|(_, changes, bytes)| (changes, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choices(list: &[(u64, f64)]) -> Vec<Choice> {
        list.iter().map(|(bytes, cost)| Choice { bytes: *bytes, cost: *cost }).collect()
    }

    fn sums(items: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
        let of = |(item, c): (&Vec<Choice>, &usize)| (item[*c].bytes, item[*c].cost);
        let each: Vec<(u64, f64)> = items.iter().zip(chosen).map(of).collect();
        (each.iter().map(|e| e.0).sum(), each.iter().map(|e| e.1).sum())
    }

    /// The least cost within the budget, by trying everything.
    fn least_cost(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else { return Some(0.0) };
        let with = |c: &Choice| Some(c.cost + least_cost(rest, budget.checked_sub(c.bytes)?)?);
        first.iter().filter_map(with).min_by(f64::total_cmp)
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let items = [choices(&[(4, 10.0), (5, 1.0)]), choices(&[(4, 10.0), (5, 7.0), (8, 0.0)])];
        assert_eq!(choose(&items, 8), Ok(vec![0, 0]));
        assert_eq!(choose(&items, 9), Ok(vec![1, 0]));
        assert_eq!(choose(&items, 10), Ok(vec![1, 1]));
        assert_eq!(choose(&items, 12), Ok(vec![1, 1]));
        assert_eq!(choose(&items, 13), Ok(vec![1, 2]));
        assert_eq!(choose(&items, u64::MAX / 2), Ok(vec![1, 2]));
        assert_eq!(choose(&items, 7), Err(TooSmall { minimum: 8 }));
    }

    #[test]
    fn a_larger_choice_that_costs_more_is_never_made() {
        let items = [choices(&[(4, 1.0), (9, 2.0), (6, 1.0)])];
        assert_eq!(choose(&items, 100), Ok(vec![0]));
    }

    /// Items with a few choices, and a budget around what they need.
    fn problem() -> impl Strategy<Value = (Vec<Vec<Choice>>, u64)> {
        let choice = (1u64..60, 0u32..1000).prop_map(|(bytes, cost)| Choice { bytes, cost: f64::from(cost) });
        let items = prop::collection::vec(prop::collection::vec(choice, 1..5), 1..7);
        (items, 1u64..250)
    }

    proptest! {
        #[test]
        fn choices_keep_to_the_budget_and_come_near_the_best((items, budget) in problem()) {
            let minimum: u64 = items.iter().map(|i| i.iter().map(|c| c.bytes).min().unwrap()).sum();
            match choose(&items, budget) {
                Err(TooSmall { minimum: found }) => {
                    prop_assert_eq!(found, minimum);
                    prop_assert!(minimum > budget);
                }
                Ok(chosen) => {
                    let (bytes, cost) = sums(&items, &chosen);
                    prop_assert!(bytes <= budget);
                    let least = least_cost(&items, budget).unwrap();
                    prop_assert!(cost >= least);
                    // The step that did not fit saves at most what the dearest step of any item does.
                    let worst = items.iter().map(|item| {
                        let hull = hull(item);
                        let saved = |pair: &[usize]| item[pair[0]].cost - item[pair[1]].cost;
                        hull.windows(2).map(saved).fold(0.0, f64::max)
                    }).fold(0.0, f64::max);
                    prop_assert!(cost <= least + worst, "{} for {}", cost, least);
                }
            }
        }

        #[test]
        fn a_budget_that_a_hull_step_ends_at_is_used_in_the_best_way((items, budget) in problem(), price in 0.1f64..50.0) {
            // The best choice at a price of a byte is the best within the bytes that it takes.
            let _ = budget;
            let at_price = |item: &Vec<Choice>| {
                let of = |i: &usize| item[*i].cost + price * item[*i].bytes as f64;
                hull(item).into_iter().min_by(|a, b| of(a).total_cmp(&of(b))).unwrap()
            };
            let chosen: Vec<usize> = items.iter().map(at_price).collect();
            let (bytes, cost) = sums(&items, &chosen);
            let (_, found) = sums(&items, &choose(&items, bytes).unwrap());
            prop_assert!((found - cost).abs() < 1e-6, "{} at the price, {} found", cost, found);
        }

        #[test]
        fn more_bytes_never_cost_much_more((items, budget) in problem()) {
            if let (Ok(less), Ok(more)) = (choose(&items, budget), choose(&items, u64::MAX / 2)) {
                prop_assert!(sums(&items, &more).1 <= sums(&items, &less).1);
            }
        }
    }
}
