//! The etcd v3 driver.
