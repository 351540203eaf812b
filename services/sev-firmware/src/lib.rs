//! caisson-sev-firmware
