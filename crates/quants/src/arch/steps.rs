//! Tables for functions of one number that jump at each of 15 thresholds and are constant between.

/// Such a function, with its thresholds in the orders in which vector operations look them up.
pub(crate) struct Steps {
    /// As a heap: the children of node `i` are `2 i` and `2 i + 1`, the root is 1, and the leaves from 16 on are not in it.
    pub(super) heap: [f32; 16],
    /// The third level of the heap, the element for node `4 + i` at place `-i` modulo 8.
    pub(super) third: [f32; 8],
    /// The fourth, in the same order.
    pub(super) fourth: [f32; 8],
    /// The values of left leaves, by their parents in the same order.
    pub(super) left: [f32; 8],
    /// The values of right leaves.
    pub(super) right: [f32; 8],
    /// Value `i` is that of numbers with `i` thresholds at or below them.
    pub(super) values: [f32; 16],
}

impl Steps {
    /// The function that is `values[i]` where `i` of the thresholds, which ascend, are at or below the number.
    pub(crate) const fn new(thresholds: &[f32; 15], values: &[i8; 16]) -> Self {
        let zeros = [0.0; 8];
        let mut steps = Self {
            heap: [0.0; 16],
            third: zeros,
            fourth: zeros,
            left: zeros,
            right: zeros,
            values: [0.0; 16],
        };
        let mut i = 0;
        while i < 16 {
            steps.values[i] = values[i] as f32;
            if i > 0 {
                let level = i.ilog2();
                steps.heap[i] = thresholds[((i - (1 << level)) * 2 + 1) * (8 >> level) - 1];
            }
            i += 1;
        }
        i = 0;
        while i < 8 {
            let place = (8 - i) % 8;
            steps.third[place] = steps.heap[4 + i % 4];
            steps.fourth[place] = steps.heap[8 + i];
            steps.left[place] = steps.values[i * 2];
            steps.right[place] = steps.values[i * 2 + 1];
            i += 1;
        }
        steps
    }
}
