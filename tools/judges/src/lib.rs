//! The `sev` crate has two halves that exclude each other. The one without OpenSSL judges SNP's digests and reports beside
//! the secure processor itself. The other one, here, knows SEV's sessions, certificates and digests, and SNP's ID blocks.
#![forbid(unsafe_code)]
