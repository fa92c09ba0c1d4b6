//! The descriptors of the public API.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MethodDescriptor, ServiceDescriptor};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    // They were written by our own build; were they broken, no document could be made, and tests would notice.
    DescriptorPool::decode(herald_proto::FILE_DESCRIPTOR_SET).unwrap_or_default()
});

/// The package of the public API.
pub const PACKAGE: &str = "herald.v1";

/// Everything that is described.
pub fn pool() -> &'static DescriptorPool {
    &POOL
}

/// Every service of the API.
pub fn services() -> impl Iterator<Item = ServiceDescriptor> {
    pool().services().filter(|service| service.package_name() == PACKAGE)
}

/// Every method of the API.
pub fn methods() -> Vec<MethodDescriptor> {
    services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

/// The method of a name such as `Users.PutUser`.
pub fn method(name: &str) -> Option<MethodDescriptor> {
    methods().into_iter().find(|method| short_name(method) == name)
}

/// The name of a method, such as `Users.PutUser`.
pub fn short_name(method: &MethodDescriptor) -> String {
    format!("{}.{}", method.parent_service().name(), method.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_found_by_name() {
        assert_eq!(method("Users.PutUser").unwrap().input().full_name(), "herald.v1.PutUserRequest");
        assert!(method("Users.Nothing").is_none());
    }
}
