//! What must be there before a run: tenants with keys, templates, users with preferences, and who follows whom.

use std::str::FromStr;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use herald_proto::v1::Audience;
use herald_proto::v1::{
    ChannelPreference, CreateKeyRequest, Edge, EmailTemplate, Endpoint, FollowRequest, InAppTemplate, NotifyRequest,
    PutPreferencesRequest, PutTemplateRequest, PutUserRequest, PutUsersRequest, TemplateChannels, Tenant as TenantRow,
};
use pbjson_types::{Struct, Value, value::Kind};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    api::{ADMIN_KEY, Api, connect},
    process::Herald,
};

const SCOPES: [&str; 6] = ["notify", "status", "users", "preferences", "templates", "inbox"];
const CATEGORY: &str = "social";
const TEMPLATE: &str = "news";
const CHANNELS: [&str; 2] = ["email", "in_app"];

/// The median and the sigma of the lognormal distribution of followers: the 95th percentile is 300.
const LOGNORMAL: (f64, f64) = (20.0, 1.646);

/// Connections that the tenants share.
const CONNECTIONS: usize = 4;

/// How many receive one notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fanout {
    /// As many for each.
    Fixed(usize),
    /// Each author has a size of its own, up to the number of users.
    Lognormal,
}

impl FromStr for Fanout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("lognormal", _) => Ok(Self::Lognormal),
            (_, Ok(fanout @ 1..=10_000)) => Ok(Self::Fixed(fanout)),
            _ => Err("expected `lognormal` or 1 to 10000".into()),
        }
    }
}

impl std::fmt::Display for Fanout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(fanout) => write!(f, "fan-out {fanout}"),
            Self::Lognormal => f.write_str("fan-out lognormal"),
        }
    }
}

impl Fanout {
    /// Followers of one author.
    fn sample(self, users: usize, random: &mut StdRng) -> usize {
        match self {
            Self::Fixed(fanout) => fanout,
            Self::Lognormal => {
                // Box and Muller; 1 - u is never 0.
                let (u, v): (f64, f64) = (random.random(), random.random());
                let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
                let (median, sigma) = LOGNORMAL;
                ((median * (sigma * normal).exp()).round() as usize).clamp(1, users)
            }
        }
    }
}

/// How large the world is.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Tenants.
    pub tenants: usize,
    /// Users of each tenant who follow.
    pub users: usize,
    /// How many follow one author.
    pub fanout: Fanout,
    /// `email` or `in_app`.
    pub channel: &'static str,
    /// Seed of the sizes.
    pub seed: u64,
}

/// The tenants of a running process.
pub struct World {
    /// The tenants.
    pub tenants: Vec<Tenant>,
    channel: &'static str,
}

/// A tenant.
#[derive(Clone)]
pub struct Tenant {
    /// Acts with the tenant's key.
    pub api: Api,
    /// The names of the users who follow.
    pub users: Vec<String>,
    /// How many follow each author.
    authors: Vec<usize>,
}

impl World {
    /// Creates it through the API.
    pub async fn create(herald: &Herald, plan: Plan) -> anyhow::Result<Self> {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(connect(herald.address).await?);
        }
        let admin = Api::new(channels[0].clone(), ADMIN_KEY)?;
        let tenants = stream::iter(0..plan.tenants).map(|number| {
            let (admin, channel) = (admin.clone(), channels[number % CONNECTIONS].clone());
            async move { create_tenant(&admin, channel, number, plan).await }
        });
        Ok(Self { tenants: tenants.buffered(8).try_collect().await?, channel: plan.channel })
    }

    /// The `number`-th notification, who sends it, and how many receive it. The `turn` chooses the tenant.
    pub fn notification(&self, turn: u64, number: u64, text: String) -> (&Tenant, NotifyRequest, u64) {
        let tenant = &self.tenants[turn as usize % self.tenants.len()];
        let author = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % tenant.authors.len();
        let request = NotifyRequest {
            template_id: TEMPLATE.into(),
            audience: Some(Audience { followers_of: Some(author_name(author)), ..Default::default() }),
            actor_id: Some(author_name(author)),
            channels: vec![self.channel.into()],
            dedupe_key: Some(format!("news-{number}")),
            data: Some(text_struct("text", text)),
            ..Default::default()
        };
        (tenant, request, tenant.authors[author] as u64)
    }
}

/// A struct with one text.
pub fn text_struct(name: &str, text: String) -> Struct {
    Struct { fields: [(name.to_owned(), Value { kind: Some(Kind::StringValue(text)) })].into() }
}

async fn create_tenant(
    admin: &Api,
    channel: tonic::transport::Channel,
    number: usize,
    plan: Plan,
) -> anyhow::Result<Tenant> {
    let tenant_id = format!("tenant-{number}");
    let row = TenantRow { tenant_id: tenant_id.clone(), name: tenant_id.clone(), ..Default::default() };
    admin.admin().put_tenant(row).await.context("the tenant was refused")?;
    let key = CreateKeyRequest {
        tenant_id: Some(tenant_id.clone()),
        name: "loadtest".into(),
        scopes: SCOPES.map(Into::into).into(),
        expires_at: None,
    };
    let key = admin.admin().create_key(key).await.context("the key was refused")?.into_inner().key;
    let api = Api::new(channel, &key)?;
    api.templates().put_template(template()).await.context("the template was refused")?;

    let mut random = StdRng::seed_from_u64(plan.seed.wrapping_add(number as u64));
    let authors: Vec<usize> =
        (0..author_count(plan.fanout)).map(|_| plan.fanout.sample(plan.users, &mut random)).collect();
    let users: Vec<String> = (0..plan.users).map(|user| format!("user-{user}")).collect();
    let names: Vec<String> = users.iter().cloned().chain((0..authors.len()).map(author_name)).collect();
    put_people(&api, &names).await?;
    follow(&api, &authors, &users).await?;
    Ok(Tenant { api, users, authors })
}

/// Fewer authors where each has many followers, so that setting up stays short.
fn author_count(fanout: Fanout) -> usize {
    match fanout {
        Fanout::Fixed(fanout) => (1_000 / fanout).clamp(8, 64),
        Fanout::Lognormal => 64,
    }
}

fn author_name(author: usize) -> String {
    format!("author-{author}")
}

/// Three variables: of the data, of the actor and of the user.
fn template() -> PutTemplateRequest {
    let greeting = "Hi {{user.attributes.name}}, {{actor.attributes.name}} has news for you.";
    PutTemplateRequest {
        template_id: TEMPLATE.into(),
        channels: Some(TemplateChannels {
            email: Some(EmailTemplate {
                subject: Some("{{data.text}}".into()),
                text: Some(greeting.into()),
                html: None,
            }),
            in_app: Some(InAppTemplate { title: Some("{{data.text}}".into()), body: Some(greeting.into()) }),
            ..Default::default()
        }),
        category: Some(CATEGORY.into()),
        ..Default::default()
    }
}

async fn put_people(api: &Api, names: &[String]) -> anyhow::Result<()> {
    for some in names.chunks(500) {
        let users = some.iter().map(|name| PutUserRequest {
            user_id: name.clone(),
            attributes: Some(text_struct("name", format!("Name of {name}"))),
            endpoints: vec![Endpoint {
                channel: "email".into(),
                address: format!("{name}@example.org"),
                ..Default::default()
            }],
            ..Default::default()
        });
        let answer = api.users().put_users(PutUsersRequest { users: users.collect() }).await?.into_inner();
        anyhow::ensure!(answer.results.iter().all(|result| result.error.is_none()), "a user was refused");
    }
    let preferences = stream::iter(names).map(|name| {
        let wanted = ChannelPreference { enabled: Some(true), categories: [(CATEGORY.to_owned(), true)].into() };
        let channels = CHANNELS.map(|channel| (channel.to_owned(), wanted.clone())).into();
        let request = PutPreferencesRequest { user_id: name.clone(), channels, quiet_hours: None };
        let mut users = api.users();
        async move { users.put_preferences(request).await }
    });
    preferences.buffer_unordered(64).try_for_each(|_| async { Ok(()) }).await.context("preferences were refused")
}

async fn follow(api: &Api, authors: &[usize], users: &[String]) -> anyhow::Result<()> {
    let edges: Vec<Edge> = authors
        .iter()
        .enumerate()
        .flat_map(|(author, followers)| {
            // Each author's followers begin at another user, so that all users are followers.
            let first = author * users.len() / authors.len();
            (0..*followers).map(move |follower| Edge {
                follower: users[(first + follower) % users.len()].clone(),
                followee: author_name(author),
            })
        })
        .collect();
    for some in edges.chunks(10_000) {
        api.users().follow(FollowRequest { edges: some.to_vec() }).await.context("edges were refused")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_are_lognormal() {
        let mut random = StdRng::seed_from_u64(1);
        let mut sizes: Vec<usize> = (0..10_001).map(|_| Fanout::Lognormal.sample(400, &mut random)).collect();
        sizes.sort_unstable();
        assert!((18..=22).contains(&sizes[5_000]), "the median is {}", sizes[5_000]);
        assert!((270..=330).contains(&sizes[9_500]), "the 95th percentile is {}", sizes[9_500]);
        assert!((1..=400).contains(&sizes[0]) && sizes[10_000] == 400);
    }

    #[test]
    fn a_fanout_is_a_number_or_lognormal() {
        assert_eq!("20".parse(), Ok(Fanout::Fixed(20)));
        assert_eq!("lognormal".parse(), Ok(Fanout::Lognormal));
        assert!("0".parse::<Fanout>().is_err());
    }
}
