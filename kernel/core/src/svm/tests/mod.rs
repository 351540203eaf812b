mod cpuid;
mod events;
mod npt;
mod state;
