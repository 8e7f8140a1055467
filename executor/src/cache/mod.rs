//! Binary caches: narinfo, signatures, compressed archives.
