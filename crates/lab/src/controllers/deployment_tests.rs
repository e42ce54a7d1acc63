use serde_json::{Value, json};

use super::*;

#[expect(
    clippy::needless_pass_by_value,
    reason = "a literal reads best without a borrow"
)]
fn deployment(replicas: i32, image: &str, extra: Value) -> Deployment {
    let mut deployment = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                 "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}},
    });
    for (key, value) in extra.as_object().cloned().unwrap_or_default() {
        deployment["spec"][key] = value;
    }
    serde_json::from_value(deployment).unwrap()
}

/// ReplicaSets as the server and the ReplicaSet controller would make of plans.
#[derive(Default)]
struct World {
    sets: Vec<ReplicaSet>,
    clock: i64,
    events: Vec<String>,
}

impl World {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_000_000 + self.clock).unwrap()
    }

    /// Plans once, carries the plan out, and checks the bounds of the rollout. Returns whether anything changed.
    fn step(&mut self, deployment: &mut Deployment) -> bool {
        self.clock += 1;
        let sets: Vec<Arc<ReplicaSet>> = self.sets.iter().cloned().map(Arc::new).collect();
        let plan = plan(deployment, &sets, &[], self.now());
        let idle = plan
            == Plan {
                again: plan.again,
                ..Plan::default()
            };
        if let Some(mut set) = plan.create {
            set.metadata.creation_timestamp = Some(Time(self.now()));
            self.events.push(format!("create {}", replicas(&set)));
            self.sets.push(set);
        }
        for (key, wanted) in plan.scale {
            let index = self
                .sets
                .iter()
                .position(|set| Key::of(&set.metadata) == key)
                .unwrap();
            self.events
                .push(format!("{index}:{}>{wanted}", replicas(&self.sets[index])));
            self.sets[index].spec.as_mut().unwrap().replicas = Some(wanted);
        }
        for (key, annotations) in plan.annotate {
            let set = self
                .sets
                .iter_mut()
                .find(|set| Key::of(&set.metadata) == key)
                .unwrap();
            set.metadata.annotations = Some(annotations);
        }
        if let Some(revision) = plan.revision {
            deployment
                .metadata
                .annotations
                .get_or_insert_default()
                .insert(REVISION.into(), revision);
        }
        for key in plan.delete {
            self.sets.retain(|set| Key::of(&set.metadata) != key);
        }
        if plan.status.is_some() {
            deployment.status = plan.status;
        }
        !idle
    }

    /// Lets one pod of one set become ready, or removes surplus pods. Returns whether anything changed.
    fn one_pod(&mut self) -> bool {
        for set in self.sets.iter_mut().rev() {
            let wanted = replicas(set);
            let status = set.status.get_or_insert_default();
            let ready = status.ready_replicas.unwrap_or(0);
            if status.replicas != wanted || ready > wanted {
                status.replicas = wanted;
                status.ready_replicas = Some(ready.min(wanted));
                status.available_replicas = status.ready_replicas;
                return true;
            }
            if ready < wanted {
                status.ready_replicas = Some(ready + 1);
                status.available_replicas = status.ready_replicas;
                return true;
            }
        }
        false
    }

    fn settle(&mut self, deployment: &mut Deployment, check: impl Fn(i32, i32)) {
        for _ in 0..500 {
            let planned = self.step(deployment);
            let total: i32 = self.sets.iter().map(replicas).sum();
            let available: i32 = self
                .sets
                .iter()
                .map(|set| available(set).min(replicas(set)))
                .sum();
            check(total, available);
            if !self.one_pod() && !planned {
                return;
            }
        }
        panic!("does not settle: {:?}", self.events);
    }

    fn replicas(&self) -> Vec<i32> {
        self.sets.iter().map(replicas).collect()
    }
}

fn reason(deployment: &Deployment, kind: &str) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == kind)?
        .reason
        .clone()
}

#[test]
fn a_new_deployment_gets_one_replica_set_and_becomes_available() {
    let mut world = World::default();
    let mut web = deployment(3, "nginx:1", json!({}));
    world.settle(&mut web, |_, _| {});
    assert_eq!(world.events, ["create 3"]);
    let set = &world.sets[0];
    let hash = label(set, POD_TEMPLATE_HASH).unwrap();
    assert_eq!(set.metadata.name.as_deref(), Some(format!("web-{hash}").as_str()));
    assert_eq!(
        set.spec
            .as_ref()
            .unwrap()
            .selector
            .match_labels
            .as_ref()
            .unwrap()
            .get(POD_TEMPLATE_HASH),
        Some(hash)
    );
    assert_eq!(
        reason(&web, "Progressing").as_deref(),
        Some("NewReplicaSetAvailable")
    );
    assert_eq!(
        reason(&web, "Available").as_deref(),
        Some("MinimumReplicasAvailable")
    );
    assert_eq!(web.metadata.annotations.unwrap()[REVISION], "1");
}

#[test]
fn a_rolling_update_stays_within_surge_and_unavailable() {
    for (surge, unavailable, most, least) in [
        ("25%", "25%", 13, 8),
        ("0", "1", 10, 9),
        ("100%", "0", 20, 10),
        ("0", "0", 10, 9),
    ] {
        let number = |text: &str| {
            text.parse::<i32>()
                .map_or_else(|_| json!(text), |number| json!(number))
        };
        let strategy = json!({"strategy": {"rollingUpdate": {"maxSurge": number(surge), "maxUnavailable": number(unavailable)}}});
        let mut world = World::default();
        world.settle(&mut deployment(10, "nginx:1", strategy.clone()), |_, _| {});
        let mut web = deployment(10, "nginx:2", strategy);
        world.settle(&mut web, |total, available| {
            assert!(total <= most, "{total} pods, {most} allowed");
            assert!(available >= least, "{available} available, {least} asked for");
        });
        assert_eq!(world.replicas(), [0, 10], "{surge} {unavailable}");
        assert_eq!(web.metadata.annotations.unwrap()[REVISION], "2");
    }
}

#[test]
fn an_update_that_never_becomes_ready_leaves_the_old_pods_serving() {
    let mut world = World::default();
    world.settle(&mut deployment(4, "nginx:1", json!({})), |_, _| {});
    let mut web = deployment(4, "broken", json!({}));
    for _ in 0..20 {
        world.step(&mut web);
        if let Some(new) = world.sets.get_mut(1) {
            new.status.get_or_insert_default().replicas = replicas(new);
        }
        let old = &mut world.sets[0];
        let left = replicas(old);
        let status = old.status.as_mut().unwrap();
        status.replicas = left;
        status.ready_replicas = Some(left);
        status.available_replicas = Some(left);
    }
    assert_eq!(world.replicas(), [3, 2]);
    assert_eq!(
        reason(&web, "Available").as_deref(),
        Some("MinimumReplicasAvailable")
    );
    world.clock += 601;
    world.step(&mut web);
    assert_eq!(
        reason(&web, "Progressing").as_deref(),
        Some("ProgressDeadlineExceeded")
    );
}

#[test]
fn going_back_uses_the_old_replica_set_under_a_new_revision() {
    let mut world = World::default();
    let mut web = deployment(2, "nginx:1", json!({}));
    world.settle(&mut web, |_, _| {});
    for image in ["nginx:2", "nginx:1"] {
        web.spec = deployment(2, image, json!({})).spec;
        world.settle(&mut web, |_, _| {});
    }
    assert_eq!(world.replicas(), [2, 0]);
    assert_eq!(
        world
            .sets
            .iter()
            .map(|set| revision(set).unwrap())
            .collect::<Vec<_>>(),
        [3, 2]
    );
    assert_eq!(web.metadata.annotations.unwrap()[REVISION], "3");
}

#[test]
fn recreate_waits_until_no_old_pod_is_left() {
    let strategy = json!({"strategy": {"type": "Recreate"}});
    let mut world = World::default();
    world.settle(&mut deployment(2, "nginx:1", strategy.clone()), |_, _| {});
    world.events.clear();
    let mut web = deployment(2, "nginx:2", strategy);
    let mut highest = 0;
    for _ in 0..10 {
        world.step(&mut web);
        highest = highest.max(world.replicas().iter().sum::<i32>());
        world.one_pod();
    }
    assert_eq!(world.events, ["0:2>0", "create 2"]);
    assert_eq!(highest, 2);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::default();
    world.settle(&mut deployment(2, "nginx:1", json!({})), |_, _| {});
    world.events.clear();
    let mut web = deployment(5, "nginx:2", json!({"paused": true}));
    world.settle(&mut web, |_, _| {});
    assert_eq!(world.events, ["0:2>5"]);
    assert_eq!(reason(&web, "Progressing").as_deref(), Some("DeploymentPaused"));
}

#[test]
fn history_is_cut_at_its_limit() {
    let mut world = World::default();
    for image in ["a", "b", "c", "d"] {
        world.settle(
            &mut deployment(1, image, json!({"revisionHistoryLimit": 1})),
            |_, _| {},
        );
    }
    assert_eq!(world.replicas(), [0, 1]);
}

#[test]
fn shares_round_in_the_direction_that_makes_progress() {
    let text = |text: &str| IntOrString::String(text.into());
    let table = [
        (None, 10, true, 3),
        (None, 10, false, 2),
        (Some(text("50%")), 3, true, 2),
        (Some(text("50%")), 3, false, 1),
        (Some(IntOrString::Int(4)), 3, true, 4),
    ];
    for (value, total, up, expected) in table {
        assert_eq!(share(value.as_ref(), total, up), expected);
    }
}
