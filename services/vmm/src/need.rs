//! How much a balloon holds because others need memory, beside what people want it to hold.
//!
//! memory says how far the machine is from having enough, and every vmm with a balloon gives its share: at once as much as is
//! lacking, and no more than its guest has shown that it can give. It takes back slowly, and only once there is plenty.

/// Pages that a balloon shrinks by at a time at the least, as long as there are any: 4 MiB.
const STEP: u64 = 1024;
/// Otherwise it shrinks by this part of what it holds for others.
const PART: u64 = 8;

/// What memory said, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// How much is lacking.
    pub lacking: u64,
    /// How much there is beyond plenty.
    pub spare: u64,
    /// How many VMs share both.
    pub vms: u64,
}

/// How a balloon stands, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balloon {
    /// What people want it to hold.
    pub asked: u64,
    /// What its driver says that it holds.
    pub actual: u64,
    /// What it may hold at the most, so that the guest keeps its floor.
    pub most: u64,
}

/// What the balloon is to hold beside `asked`, if it was `need` and this was told.
pub fn follow(need: u64, told: &Told, balloon: &Balloon) -> u64 {
    let room = balloon.most.saturating_sub(balloon.asked);
    let need = need.min(room);
    let share = |pages: u64| pages.div_ceil(told.vms.max(1));
    if told.lacking > 0 {
        // What is on its way already counts: a guest that is slow, or has none to give, isn't asked for more and more.
        let wanted = balloon.actual.saturating_add(share(told.lacking)).saturating_sub(balloon.asked);
        return need.max(wanted.min(room));
    }
    let less = share(told.spare).min((need / PART).max(STEP));
    need.saturating_sub(less)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const BALLOON: Balloon = Balloon { asked: 1000, actual: 1000, most: 100_000 };

    #[test]
    fn each_gives_its_share_and_no_more_than_it_can() {
        let told = Told { lacking: 9000, spare: 0, vms: 3 };
        assert_eq!(follow(0, &told, &BALLOON), 3000);
        // The driver hasn't followed yet; then it has.
        assert_eq!(follow(3000, &told, &BALLOON), 3000);
        assert_eq!(follow(3000, &told, &Balloon { actual: 4000, ..BALLOON }), 6000);
        assert_eq!(follow(98_000, &told, &Balloon { actual: 99_000, ..BALLOON }), 99_000, "the guest keeps its floor");
        // It gave more than it was asked for, or less.
        assert_eq!(follow(0, &told, &Balloon { actual: 0, ..BALLOON }), 2000);
    }

    #[test]
    fn it_takes_back_slowly_and_stays_where_it_is_in_between() {
        let between = Told { lacking: 0, spare: 0, vms: 2 };
        assert_eq!(follow(5000, &between, &BALLOON), 5000);
        let plenty = Told { spare: 1 << 30, ..between };
        assert_eq!(follow(80_000, &plenty, &BALLOON), 70_000);
        assert_eq!(follow(5000, &plenty, &BALLOON), 5000 - STEP);
        assert_eq!(follow(1000, &plenty, &BALLOON), 0);
        assert_eq!(follow(5000, &Told { spare: 10, ..between }, &BALLOON), 4995);
    }

    proptest! {
        #[test]
        fn the_guest_keeps_its_floor_whatever_is_told(
            need: u64, lacking: u64, spare: u64, vms: u64, asked: u64, actual: u64, most: u64,
        ) {
            let balloon = Balloon { asked, actual, most };
            let after = follow(need, &Told { lacking, spare, vms }, &balloon);
            prop_assert!(after <= most.saturating_sub(asked));
            if lacking > 0 {
                prop_assert!(after >= need.min(most.saturating_sub(asked)));
            } else {
                prop_assert!(after <= need);
            }
        }

        /// Whatever guests hold at first, what is lacking comes from them if they have it, and goes back when it isn't needed.
        #[test]
        fn shortage_ends_and_so_does_plenty(mosts in prop::collection::vec(0..50_000_u64, 1..5), lacking in 1..100_000_u64) {
            let room: u64 = mosts.iter().sum();
            let mut balloons: Vec<_> = mosts.iter().map(|most| (0, Balloon { asked: 0, actual: 0, most: *most })).collect();
            let vms = balloons.len() as u64;
            let held = |balloons: &[(u64, Balloon)]| balloons.iter().map(|(_, balloon)| balloon.actual).sum::<u64>();
            for _ in 0..400 {
                let told = Told { lacking: lacking.saturating_sub(held(&balloons)), spare: 0, vms };
                if told.lacking == 0 {
                    break;
                }
                for (need, balloon) in &mut balloons {
                    *need = follow(*need, &told, balloon);
                    balloon.actual = *need;
                }
            }
            let given = held(&balloons);
            prop_assert!(given >= lacking.min(room) && given <= lacking.saturating_add(vms), "{given}");
            for _ in 0..400 {
                for (need, balloon) in &mut balloons {
                    *need = follow(*need, &Told { lacking: 0, spare: 1 << 20, vms }, balloon);
                    balloon.actual = *need;
                }
            }
            prop_assert_eq!(held(&balloons), 0);
        }
    }
}
