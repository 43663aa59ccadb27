//! The operator's listener: metrics and health.
