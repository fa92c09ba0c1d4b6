//! Who calls, and what they may do.

use aws_lc_rs::{constant_time, digest};

use crate::{
    ids::TenantId,
    policy::{KeyRow, Policy, SIGNING_SECRET},
    problem::{Kind, Problem},
    tokens::{InvalidToken, USER_TOKEN_PREFIX, UserToken},
};

/// Something that a key or token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// `notify`: send notifications.
    Notify,
    /// `notify:override`: send although a preflight says no.
    NotifyOverride,
    /// `status`: read status, requests and receipts.
    Status,
    /// `users`: write and read users, follows and subscriptions.
    Users,
    /// `preferences`: write and read preferences.
    Preferences,
    /// `templates`: write and read templates.
    Templates,
    /// `inbox`: read and mark inboxes, and follow them live.
    Inbox,
    /// `tokens`: issue tokens for end users.
    Tokens,
    /// `operator`: everything, for any tenant. Only keys without a tenant have it.
    Operator,
}

impl Scope {
    /// Every scope that a tenant's key can have.
    pub const OF_TENANTS: [Self; 8] = [
        Self::Notify,
        Self::NotifyOverride,
        Self::Status,
        Self::Users,
        Self::Preferences,
        Self::Templates,
        Self::Inbox,
        Self::Tokens,
    ];

    /// Every scope that an end user's token can have.
    pub const OF_END_USERS: [Self; 2] = [Self::Inbox, Self::Preferences];

    /// The scope's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::NotifyOverride => "notify:override",
            Self::Status => "status",
            Self::Users => "users",
            Self::Preferences => "preferences",
            Self::Templates => "templates",
            Self::Inbox => "inbox",
            Self::Tokens => "tokens",
            Self::Operator => "operator",
        }
    }

    /// The scope of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::OF_TENANTS.into_iter().chain([Self::Operator]).find(|scope| scope.name() == name)
    }
}

/// The names of every scope that a tenant's key can have.
pub const TENANT_SCOPES: [&str; 8] =
    ["notify", "notify:override", "status", "users", "preferences", "templates", "inbox", "tokens"];

/// A set of scopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u16);

impl Scopes {
    /// The scopes of these names. Names that this binary does not know grant nothing.
    pub fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        names.into_iter().filter_map(Scope::of_name).fold(Self::default(), Self::with)
    }

    /// The set with one more.
    pub fn with(self, scope: Scope) -> Self {
        Self(self.0 | 1 << scope as u16)
    }

    /// Whether a scope is in the set.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & 1 << scope as u16 != 0
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A tenant's key, by its public part.
    Key(String),
    /// An operator's key, by its public part.
    Operator(String),
    /// An end user with a token, by user id.
    EndUser(String),
}

/// Who calls, for which tenant, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub principal: Principal,
    tenant: Option<TenantId>,
    scopes: Scopes,
}

/// What a call presents.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The text after `Bearer`.
    pub bearer: Option<&'a str>,
    /// `Herald-Tenant`: the tenant that an operator's key acts for.
    pub tenant: Option<&'a str>,
}

impl Caller {
    /// Finds out who calls.
    ///
    /// # Errors
    /// 401 without a valid key or token; 403 for `Herald-Tenant` with anything but an operator's key; 404 where an
    /// operator names a tenant that does not exist.
    pub fn authenticate(policy: &Policy, credentials: Credentials<'_>, now_ms: u64) -> Result<Self, Problem> {
        let bearer = credentials
            .bearer
            .ok_or_else(|| unauthenticated("Send `Authorization: Bearer <key>` with an API key or a token."))?;
        let caller = if bearer.starts_with(USER_TOKEN_PREFIX) {
            Self::of_user_token(policy, bearer, now_ms)?
        } else {
            Self::of_key(policy, bearer, now_ms)?
        };
        match (credentials.tenant, &caller.principal) {
            (None, _) => Ok(caller),
            (Some(tenant), Principal::Operator(_)) => {
                let id = TenantId::parse(tenant).map_err(|e| Problem::field("Herald-Tenant", "invalid_value", e.0))?;
                policy.tenant(&id).ok_or_else(|| Problem::not_found("tenant"))?;
                Ok(Self { tenant: Some(id), ..caller })
            }
            _ => Err(Problem::forbidden("Only an operator's key may name a tenant with Herald-Tenant.")),
        }
    }

    fn of_key(policy: &Policy, key: &str, now_ms: u64) -> Result<Self, Problem> {
        let hash = sha256_hex(key.as_bytes());
        let row: &KeyRow = policy
            .key_by_sha256(&hash)
            .filter(|row| constant_time::verify_slices_are_equal(row.sha256.as_bytes(), hash.as_bytes()).is_ok())
            .ok_or_else(|| unauthenticated("There is no such key."))?;
        if row.has_expired(now_ms) {
            return Err(unauthenticated("The key has expired."));
        }
        let Some(tenant) = &row.tenant_id else {
            let scopes = Scope::OF_TENANTS.into_iter().fold(Scopes::default(), Scopes::with).with(Scope::Operator);
            return Ok(Self { principal: Principal::Operator(row.key_id.clone()), tenant: None, scopes });
        };
        // The key of a tenant that is gone opens nothing.
        let tenant = policy.tenant_id(tenant).ok_or_else(|| unauthenticated("There is no such key."))?;
        let scopes = Scopes::of_names(row.scopes.iter().map(String::as_str).filter(|name| *name != "operator"));
        Ok(Self { principal: Principal::Key(row.key_id.clone()), tenant: Some(tenant.clone()), scopes })
    }

    fn of_user_token(policy: &Policy, token: &str, now_ms: u64) -> Result<Self, Problem> {
        let secret = policy
            .secret(SIGNING_SECRET)
            .ok_or_else(|| Problem::unavailable("Tokens cannot be checked yet: the signing secret has not arrived."))?;
        let token = UserToken::verify(token, secret, now_ms).map_err(|error| match error {
            InvalidToken::Forged => unauthenticated("The token is not valid."),
            InvalidToken::Expired => unauthenticated("The token has expired."),
        })?;
        let tenant = policy.tenant_id(&token.tenant).ok_or_else(|| unauthenticated("The token is not valid."))?;
        let key = policy.key(&token.key_id).filter(|key| !key.has_expired(now_ms));
        if key.is_none() && !token.key_id.is_empty() {
            return Err(unauthenticated("The key that made the token is gone or has expired."));
        }
        let scopes = Scope::OF_END_USERS
            .into_iter()
            .filter(|scope| token.scopes.iter().any(|name| name == scope.name()))
            .fold(Scopes::default(), Scopes::with);
        Ok(Self { principal: Principal::EndUser(token.user), tenant: Some(tenant.clone()), scopes })
    }

    /// The tenant, for a call that needs a scope of a tenant's key. End users are refused: see [`Self::require_user`].
    ///
    /// # Errors
    /// 403 without the scope; 400 for an operator's key that names no tenant.
    pub fn require(&self, scope: Scope) -> Result<&TenantId, Problem> {
        if matches!(self.principal, Principal::EndUser(_)) {
            return Err(Problem::forbidden("This call needs an API key."));
        }
        self.tenant_with(scope)
    }

    /// The tenant, for a call about one user: a key with the scope, or this user's own token with the scope.
    ///
    /// # Errors
    /// As [`Self::require`]; 403 for the token of another user.
    pub fn require_user(&self, scope: Scope, user_id: &str) -> Result<&TenantId, Problem> {
        match &self.principal {
            Principal::EndUser(user) if user != user_id => Err(Problem::forbidden("The token is another user's.")),
            _ => self.tenant_with(scope),
        }
    }

    /// The operator's key id, for a call that only operators may make.
    ///
    /// # Errors
    /// 403 for everybody else.
    pub fn require_operator(&self) -> Result<&str, Problem> {
        match &self.principal {
            Principal::Operator(key_id) => Ok(key_id),
            _ => Err(Problem::forbidden("This call needs an operator's key.")),
        }
    }

    /// The id of the key that calls; `None` for a token.
    pub fn key_id(&self) -> Option<&str> {
        match &self.principal {
            Principal::Key(key_id) | Principal::Operator(key_id) => Some(key_id),
            Principal::EndUser(_) => None,
        }
    }

    /// Whether the scope is granted.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.has(scope)
    }

    /// The tenant that the call acts for; `None` for an operator's key that names none.
    pub fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    fn tenant_with(&self, scope: Scope) -> Result<&TenantId, Problem> {
        if !self.scopes.has(scope) {
            return Err(Problem::forbidden(format!("This call needs the scope `{}`.", scope.name())));
        }
        self.tenant.as_ref().ok_or_else(|| {
            Problem::field("Herald-Tenant", "required", "An operator's key names the tenant it acts for.")
        })
    }
}

/// The SHA-256 of bytes, in hex, as [`KeyRow::sha256`] holds it.
pub fn sha256_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let hash = digest::digest(&digest::SHA256, bytes);
    let mut hex = String::with_capacity(64);
    for byte in hash.as_ref() {
        hex.push(DIGITS[usize::from(byte >> 4)] as char);
        hex.push(DIGITS[usize::from(byte & 15)] as char);
    }
    hex
}

fn unauthenticated(detail: &str) -> Problem {
    Problem::new(Kind::Unauthenticated, "unauthenticated", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::{SecretRow, TenantRow, kind},
        record::Control,
    };

    fn put(policy: &mut Policy, kind: &str, key: &str, value: &impl serde::Serialize) {
        let value = serde_json::to_vec(value).unwrap().into();
        let version = policy.version + 1;
        policy.apply(&Control { kind: kind.into(), key: key.into(), version, value, deleted: false }).unwrap();
    }

    fn policy() -> Policy {
        let mut policy = Policy::default();
        for tenant in ["acme", "other"] {
            let row =
                TenantRow { tenant_id: tenant.into(), name: tenant.into(), created_ms: 0, updated_ms: 0, quota: None };
            put(&mut policy, kind::TENANT, tenant, &row);
        }
        for (key_id, tenant, scopes, expires_ms) in [
            ("a", Some("acme"), vec!["notify", "operator"], Some(1_000)),
            ("gone", Some("gone"), vec!["notify"], None),
            ("op", None, vec![], None),
        ] {
            let row = KeyRow {
                key_id: key_id.into(),
                sha256: sha256_hex(format!("hk_{key_id}").as_bytes()),
                tenant_id: tenant.map(Into::into),
                name: String::new(),
                scopes: scopes.into_iter().map(Into::into).collect(),
                created_ms: 0,
                expires_ms,
            };
            put(&mut policy, kind::KEY, key_id, &row);
        }
        put(&mut policy, kind::SECRET, SIGNING_SECRET, &SecretRow { value: "00ff".into() });
        policy
    }

    fn call(bearer: &str, tenant: Option<&str>, now_ms: u64) -> Result<Caller, Problem> {
        Caller::authenticate(&policy(), Credentials { bearer: Some(bearer), tenant }, now_ms)
    }

    fn status<T>(result: Result<T, Problem>) -> u16 {
        result.map_or_else(|problem| problem.kind().status(), |_| 200)
    }

    #[test]
    fn a_key_opens_its_tenant_until_it_expires() {
        let caller = call("hk_a", None, 999).unwrap();
        assert_eq!(caller.require(Scope::Notify).unwrap().as_str(), "acme");
        assert_eq!(status(caller.require(Scope::Users)), 403);
        assert_eq!(status(caller.require_operator()), 403, "a tenant's key never is an operator's");
        assert!(!caller.has(Scope::Operator));
        assert_eq!(status(call("hk_a", None, 1_000)), 401);
        for bad in ["hk_b", "", "hk_a ", "hk_gone"] {
            assert_eq!(status(call(bad, None, 0)), 401, "{bad:?}");
        }
        assert_eq!(status(Caller::authenticate(&policy(), Credentials::default(), 0)), 401);
    }

    #[test]
    fn only_an_operator_names_a_tenant() {
        assert_eq!(status(call("hk_a", Some("acme"), 0)), 403);
        assert_eq!(status(call("hk_op", Some("nobody"), 0)), 404);
        assert_eq!(call("hk_op", Some("other"), 0).unwrap().require(Scope::Users).unwrap().as_str(), "other");
        assert_eq!(status(call("hk_op", None, 0).unwrap().require(Scope::Users)), 400);
        assert_eq!(call("hk_op", None, 0).unwrap().require_operator(), Ok("op"));
    }

    #[test]
    fn a_token_opens_its_users_feed_and_nothing_else() {
        let token = |tenant: &str, scopes: &[&str]| {
            let scopes = scopes.iter().map(ToString::to_string).collect();
            let (tenant, user, key_id) = (tenant.into(), "u".into(), String::new());
            UserToken { tenant, user, scopes, expires_ms: 1_000, key_id }.sign("00ff")
        };
        let caller = call(&token("acme", &["inbox", "notify"]), None, 0).unwrap();
        assert_eq!(caller.require_user(Scope::Inbox, "u").unwrap().as_str(), "acme");
        assert_eq!(status(caller.require_user(Scope::Inbox, "v")), 403);
        assert_eq!(status(caller.require_user(Scope::Preferences, "u")), 403);
        assert_eq!(status(caller.require(Scope::Inbox)), 403, "tenant-wide calls need a key");
        assert!(!caller.has(Scope::Notify), "a token has no scope of a key");
        assert_eq!(status(call(&token("acme", &["inbox"]), Some("acme"), 0)), 403);
        assert_eq!(status(call(&token("gone", &["inbox"]), None, 0)), 401);
        assert_eq!(status(call(&token("acme", &["inbox"]), None, 1_000)), 401);
    }

    #[test]
    fn a_token_ends_with_the_key_that_made_it() {
        let by = |key_id: &str| {
            let (tenant, user, scopes) = ("acme".into(), "u".into(), vec!["inbox".into()]);
            UserToken { tenant, user, scopes, expires_ms: 9_000, key_id: key_id.into() }.sign("00ff")
        };
        assert_eq!(status(call(&by("a"), None, 999)), 200);
        assert_eq!(status(call(&by("a"), None, 1_000)), 401, "the key expires");
        assert_eq!(status(call(&by("op"), None, 8_999)), 200, "an operator's key makes tokens too");
        assert_eq!(status(call(&by("deleted"), None, 0)), 401);
        assert_eq!(status(call(&by(""), None, 8_999)), 200, "made before tokens named their key");
    }

    #[test]
    fn names_of_scopes_come_back() {
        assert_eq!(Scope::OF_TENANTS.map(Scope::name), TENANT_SCOPES);
        assert!(Scope::OF_TENANTS.iter().all(|scope| Scope::of_name(scope.name()) == Some(*scope)));
        assert_eq!(Scope::of_name("nothing"), None);
    }
}
