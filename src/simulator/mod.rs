//! A simulated ECR.
