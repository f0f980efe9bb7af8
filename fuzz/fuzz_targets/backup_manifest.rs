#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::backup_manifest(bytes));
