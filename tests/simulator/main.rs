//! The simulated ECR answers as ECR does, oddities included, and goes wrong exactly as told.

mod answers;
mod client;
mod faults;
mod tools;
