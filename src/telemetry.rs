//! Metric handles and log fields, passed in as values.
