//! Ways to come to a moment, and which of them are worth following.

use std::cmp::Reverse;

/// CPUs of a group at the most.
pub const SIZE: usize = 8;

/// A way to come to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Flushes so far.
    pub flushes: u32,
    /// At which beginning each CPU flushed last, from 1 on; 0: never.
    pub since: [u16; SIZE],
}

impl Way {
    /// Cheap ones first, and of those the ones that flushed late.
    fn order(&self) -> impl Ord + use<> {
        (self.flushes, Reverse(self.since.iter().map(|since| u32::from(*since)).sum::<u32>()), self.since)
    }
}

/// Ways that cost the same. A bit each, in the order in which they came.
struct Level {
    flushes: u32,
    count: usize,
    /// By CPU and rank: who flushed at that rank or later.
    late: [Vec<Vec<u64>>; SIZE],
}

impl Level {
    fn new(flushes: u32, ranks: &[Vec<u16>; SIZE]) -> Self {
        Self { flushes, count: 0, late: std::array::from_fn(|cpu| vec![Vec::new(); ranks[cpu].len()]) }
    }

    fn insert(&mut self, place: &[usize; SIZE]) {
        let (word, bit) = (self.count / 64, 1 << (self.count % 64));
        self.count += 1;
        for (late, own) in self.late.iter_mut().zip(place) {
            for (rank, bits) in late.iter_mut().enumerate() {
                bits.resize(word + 1, 0);
                bits[word] |= if rank <= *own { bit } else { 0 };
            }
        }
    }

    /// Whether one of these flushed earlier on at most so many CPUs.
    fn beats(&self, place: &[usize; SIZE], earlier: u32) -> bool {
        let late = std::array::from_fn(|cpu| &self.late[cpu][place[cpu]][..]);
        match earlier {
            0 => any::<1>(late),
            1 => any::<2>(late),
            2 => any::<3>(late),
            3 => any::<4>(late),
            4 => any::<5>(late),
            5 => any::<6>(late),
            6 => any::<7>(late),
            7 => any::<8>(late),
            _ => self.count > 0,
        }
    }
}

/// Whether some bit is clear in fewer than `FEWER` of the rows.
fn any<const FEWER: usize>(rows: [&[u64]; SIZE]) -> bool {
    let words = rows[0].len();
    let rows = rows.map(|row| &row[..words]);
    (0..words).any(|word| {
        // In `clear[n]`: clear in at most n of the rows so far.
        let mut clear = [u64::MAX; FEWER];
        for row in rows {
            for n in (1..FEWER).rev() {
                clear[n] = clear[n] & row[word] | clear[n - 1];
            }
            clear[0] &= row[word];
        }
        clear[FEWER - 1] != 0
    })
}

/// Without the ways that another one makes needless: it costs no more even if those CPUs flush now that flushed later
/// in the other.
pub fn prune(mut ways: Vec<Way>) -> Vec<Way> {
    ways.sort_unstable_by_key(Way::order);
    ways.dedup();
    let ranks = std::array::from_fn(|cpu| {
        let mut ranks: Vec<_> = ways.iter().map(|way| way.since[cpu]).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    });
    let mut levels: Vec<Level> = Vec::new();
    ways.retain(|way| {
        let place = std::array::from_fn(|cpu| ranks[cpu].partition_point(|rank| *rank < way.since[cpu]));
        if levels.iter().any(|level| level.beats(&place, way.flushes - level.flushes)) {
            return false;
        }
        if levels.last().is_none_or(|level| level.flushes != way.flushes) {
            levels.push(Level::new(way.flushes, &ranks));
        }
        if let Some(level) = levels.last_mut() {
            level.insert(&place);
        }
        true
    });
    ways
}

/// Not many more than `most`: ways that are much alike are replaced by one that is at least as good as each of them.
pub fn blur(mut ways: Vec<Way>, most: usize) -> Vec<Way> {
    while ways.len() > most {
        ways.sort_unstable_by_key(|way| (way.flushes, way.since));
        let apart = |a: &Way, b: &Way| a.since.iter().zip(b.since).map(|(a, b)| u32::from(a.abs_diff(b))).sum::<u32>();
        let mut pairs: Vec<_> = (ways.windows(2).zip(0..))
            .filter(|(pair, _)| pair[0].flushes == pair[1].flushes)
            .map(|(pair, at)| (apart(&pair[0], &pair[1]), at))
            .collect();
        pairs.sort_unstable();
        let mut gone = vec![false; ways.len()];
        let mut left = (ways.len() - most / 10 * 9).min(pairs.len());
        for (_, at) in pairs {
            if left == 0 || gone[at] || gone[at + 1] {
                continue;
            }
            let earlier = ways[at].since;
            ways[at + 1].since.iter_mut().zip(earlier).for_each(|(since, other)| *since = other.max(*since));
            gone[at] = true;
            left -= 1;
        }
        let before = ways.len();
        let mut gone = gone.into_iter();
        ways.retain(|_| gone.next() == Some(false));
        ways = prune(ways);
        if ways.len() == before {
            break;
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(a: &Way, b: &Way) -> bool {
        let earlier = a.since.iter().zip(b.since).filter(|(a, b)| **a < *b).count();
        a.flushes + earlier as u32 <= b.flushes
    }

    /// Many ways, all alike each time.
    fn ways(count: usize) -> Vec<Way> {
        let mut state = 1u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let way = |_| Way { flushes: 20 + next(4) as u32, since: std::array::from_fn(|_| next(6) as u16) };
        (0..count).map(way).collect()
    }

    #[test]
    fn what_is_left_beats_all_and_each_other_not() {
        for count in [1, 5, 70, 800] {
            let all = ways(count);
            let left = prune(all.clone());
            assert!(all.iter().all(|way| left.iter().any(|better| beats(better, way))));
            for (at, way) in left.iter().enumerate() {
                assert!(left.iter().enumerate().all(|(other, better)| other == at || !beats(better, way)), "{way:?}");
            }
        }
    }

    #[test]
    fn blurred_ways_are_few_and_at_least_as_good() {
        let all = prune(ways(800));
        assert!(all.len() > 40);
        let few = blur(all.clone(), 40);
        assert!(few.len() <= 40);
        assert!(all.iter().all(|way| few.iter().any(|better| beats(better, way))));
    }
}
