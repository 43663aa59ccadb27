//! Pooled buffers under one global cap.
