//! An interval tree: nodes by their beginning, each with the highest end below it.

use std::ops::Range;

/// A node, with its children.
#[derive(Debug)]
struct Node {
    range: Range<u64>,
    reach: u64,
    left: Option<Box<Self>>,
    right: Option<Box<Self>>,
}

/// The tree.
#[derive(Debug, Default)]
pub struct Tree(Option<Box<Node>>);

impl Tree {
    /// Balanced, of ranges by their beginnings.
    pub fn new(ranges: &[Range<u64>]) -> Self {
        Self(build(ranges))
    }

    /// Calls `found` for all that overlap a range, in their order.
    pub fn overlapping(&self, range: &Range<u64>, found: &mut impl FnMut(&Range<u64>)) {
        walk(self.0.as_deref(), range, found);
    }
}

fn build(ranges: &[Range<u64>]) -> Option<Box<Node>> {
    let (before, rest) = ranges.split_at(ranges.len() / 2);
    let (range, after) = rest.split_first()?;
    let (left, right) = (build(before), build(after));
    let reach = |child: &Option<Box<Node>>| child.as_ref().map_or(0, |node| node.reach);
    let reach = range.end.max(reach(&left)).max(reach(&right));
    Some(Box::new(Node { range: range.clone(), reach, left, right }))
}

fn walk(node: Option<&Node>, range: &Range<u64>, found: &mut impl FnMut(&Range<u64>)) {
    let Some(node) = node.filter(|node| node.reach > range.start) else { return };
    walk(node.left.as_deref(), range, found);
    if node.range.start < range.end {
        if node.range.end > range.start {
            found(&node.range);
        }
        walk(node.right.as_deref(), range, found);
    }
}
