// SPDX-License-Identifier: GPL-2.0-or-later
// made by docs/generate.py from virt_dmem/cli: what each command takes, and what it prints with --json

export interface Failure {
    error: Error;
    schema: 1;
}

export interface Error {
    code: string;
    message: string;
    hint: string;
}

export interface StatusAnswer {
    pools: Pool[];
    domains: Domain[] | null;
    alerts: Alert[] | null;
    checks: CheckResult[];
    schema: 1;
}

export interface Pool {
    name: string;
    backend: string;
    page_size: number;
    mount: string;
    state: string;
    capacity_bytes: number;
    reserved_bytes: number | null;
    free_bytes: number | null;
    ready_bytes: number | null;
    ready_goal_bytes: number | null;
    ready_most_bytes: number | null;
    ready_policy: string | null;
    pinned_bytes: number | null;
    nodes: PoolNode[];
    segments: PoolSegment[];
    ready_note: string | null;
    elastic: PoolElastic | null;
    on_boot: boolean | null;
}

export interface PoolNode {
    node: number;
    capacity_bytes: number;
    reserved_bytes: number | null;
    free_bytes: number | null;
    ready_bytes: number | null;
}

export interface PoolSegment {
    name: string;
    capacity_bytes: number;
    reserved_bytes: number | null;
}

export interface PoolElastic {
    max_bytes: number;
    min_bytes: number;
    keep_free_bytes: number;
    linger_seconds: number;
    room_bytes: number;
}

export interface Domain {
    uuid: string;
    name: string;
    phase: string | null;
    reserved_bytes: number | null;
    extents: Extent[];
    since?: number;
    steps?: Step[];
    state_file?: string;
    backends?: Backend[];
    active?: boolean;
    managed?: boolean;
    applied?: boolean;
    pool?: string | null;
    size_bytes?: number;
    hotplug_max_bytes?: number;
}

export interface Extent {
    alias: string;
    pool: string;
    path: string;
    size_bytes: number;
    page_size: number;
    policy: string;
    nodes: number[];
    state: string;
}

export interface Step {
    step: string;
    at: number;
    seconds: number;
}

export interface Backend {
    id: string;
    kind: string;
    path: string;
    size_bytes: number;
    policy: string;
    host_nodes: number[];
    preallocated: boolean;
    shared: boolean;
    in_pool: boolean;
}

export interface Alert {
    code: string;
    subject: string;
    message: string;
    hint: string;
    since: number;
}

export interface CheckResult {
    name: string;
    status: "FAIL" | "PASS" | "WARN";
    message: string;
    hint: string;
}

export interface CheckAnswer {
    checks: CheckResult[];
    schema: 1;
}

export interface PlanHostAnswer {
    guest_memory_bytes: number | null;
    nodes: HostNode[];
    hvo: "absent" | "off" | "on" | null;
    options: HostOption[];
    warnings: string[];
    grub: string | null;
    schema: 1;
}

export interface HostNode {
    node: number;
    total_bytes: number;
}

export interface HostOption {
    backend: string;
    page_size: number;
    size_bytes: number;
    gross_bytes: number;
    metadata_left_bytes: number;
    net_bytes: number;
    kernel_command_line: string;
    pool_create: string;
    notes: string[];
    recommended: boolean;
    reason: string;
}

export interface SavingsAnswer {
    pools: PoolSaving[];
    schema: 1;
}

export interface PoolSaving {
    pool: string;
    backend: string;
    page_size: number;
    size_bytes: number;
    gross_bytes: number;
    metadata_left_bytes: number;
    net_bytes: number;
    measured: boolean;
    how: "estimated" | "measured";
}

export interface PoolAnswer {
    pool: Pool;
    schema: 1;
}

export interface PoolResizeAnswer {
    pool: Pool;
    changes: SegmentChange[];
    schema: 1;
}

export interface SegmentChange {
    segment: string;
    before: Record<string, number>;
    after: Record<string, number>;
    interrupted?: Record<string, number>;
}

export interface PoolDestroyAnswer {
    pool: string;
    destroyed: boolean;
    given_back_bytes: number;
    schema: 1;
}

export interface PoolListAnswer {
    pools: Pool[];
    schema: 1;
}

export interface PoolMountAnswer {
    pool: Pool | null;
    schema: 1;
}

export interface ApplyAnswer {
    domain?: AppliedDomain;
    changed?: boolean;
    diff?: string;
    domains?: AppliedOne[];
    schema: 1;
}

export interface AppliedDomain {
    uuid: string;
    name: string;
    active: boolean;
    applied: boolean;
}

export interface AppliedOne {
    domain: AppliedDomain | null;
    name: string;
    changed: boolean;
    diff: string;
    error: Error | null;
}

export interface RewriteAnswer {
    changed: boolean;
    xml?: string;
    diff?: string;
    schema: 1;
}

export interface RulesAnswer {
    name: string;
    outcome: "adopted" | "ignored" | "not-taken" | "own-request" | "refused";
    rule: string | null;
    unsuitable: string;
    problem: string;
    rules: Rule[];
    schema: 1;
}

export interface Rule {
    rule: string;
    pool: string;
    unsuitable: "ignore" | "refuse";
    takes: boolean;
    why_not: string;
}

export interface ListAnswer {
    domains: Domain[];
    schema: 1;
}

export interface ShowAnswer {
    domain: Domain;
    schema: 1;
}

export interface ReconcileAnswer {
    actions: string[];
    schema: 1;
}

export interface ChangeAnswer {
    change: MemoryChange;
    schema: 1;
}

export interface MemoryChange {
    uuid: string;
    name: string;
    alias: string;
    size_bytes: number;
    state: "attached" | "detached" | "pending" | "resized";
    message: string;
}

export interface ParkAnswer {
    domains: ParkedDomain[];
    schema: 1;
}

export interface ParkedDomain {
    uuid: string;
    name: string;
    state: "discarded" | "failed" | "parked" | "paused" | "possible" | "running";
    state_file: string;
    pause_seconds: number;
    error: Error | null;
}

export interface AlertsAnswer {
    alerts: Alert[];
    schema: 1;
}

export interface EventsAnswer {
    sequence: number;
    at: number;
    kind: "alert" | "device" | "domain" | "pool" | "rejected";
    subject: string;
    name: string;
    state: string;
    code: string;
    message: string;
    schema: 1;
}

export interface MetricsAnswer {
    text: string;
    schema: 1;
}

export interface PauseApplyAnswer {
    paused: boolean;
    schema: 1;
}

export interface ReportAnswer {
    file: string;
    names: string[];
    schema: 1;
}

export interface ConfigShowAnswer {
    keys: ConfigKey[];
    schema: 1;
}

export interface ConfigKey {
    key: string;
    value: unknown;
    default: unknown;
    origin: string | null;
}

export interface CompletionAnswer {
    shell: string | null;
    script: string;
    schema: 1;
}

export interface ExplainAnswer {
    code: string;
    explanation: string;
    schema: 1;
}

export interface Commands {
    "status": {
        options: {
            "--watch"?: string;
            "--color"?: "auto" | "always" | "never";
        };
        operands: [];
        answer: StatusAnswer;
    };
    "check": {
        options: {
            "--failed"?: true;
            "--color"?: "auto" | "always" | "never";
        };
        operands: [];
        answer: CheckAnswer;
    };
    "plan-host": {
        options: {
            "--output"?: string;
            "--guest-memory"?: string;
            "--all"?: true;
            "--write-grub"?: true;
            "--remove-grub"?: true;
            "--dry-run"?: true;
            "--yes"?: true;
        };
        operands: [];
        answer: PlanHostAnswer;
    };
    "savings": {
        options: {
            "--output"?: string;
            "--no-headings"?: true;
            "--sort"?: string;
            "--reverse"?: true;
            "--filter"?: string[];
        };
        operands: [];
        answer: SavingsAnswer;
    };
    "pool create": {
        options: {
            "--size"?: string;
            "--node"?: string[];
            "--page-size"?: string;
            "--on-boot"?: true;
            "--backend"?: "hugetlbfs" | "dmemfs" | "tmpfs";
            "--no-hvo"?: true;
            "--existing-pages"?: true;
            "--elastic"?: true;
            "--max"?: string;
            "--min"?: string;
            "--keep-free"?: string;
            "--linger"?: string;
            "--region"?: string[];
        };
        operands: [name: string];
        answer: PoolAnswer;
    };
    "pool resize": {
        options: {
            "--size"?: string;
            "--node"?: string[];
            "--dry-run"?: true;
            "--yes"?: true;
            "--force"?: true;
        };
        operands: [name: string];
        answer: PoolResizeAnswer;
    };
    "pool destroy": {
        options: {
            "--dry-run"?: true;
            "--yes"?: true;
            "--wait"?: true;
            "--timeout"?: string;
            "--force"?: true;
        };
        operands: [name: string];
        answer: PoolDestroyAnswer;
    };
    "pool list": {
        options: {
            "--output"?: string;
            "--no-headings"?: true;
            "--sort"?: string;
            "--reverse"?: true;
            "--filter"?: string[];
        };
        operands: [];
        answer: PoolListAnswer;
    };
    "pool show": {
        options: Record<string, never>;
        operands: [name: string];
        answer: PoolAnswer;
    };
    "pool mount": {
        options: Record<string, never>;
        operands: [name: string];
        answer: PoolMountAnswer;
    };
    "pool drain": {
        options: {
            "--undo"?: true;
            "--wait"?: true;
            "--timeout"?: string;
        };
        operands: [name: string];
        answer: PoolAnswer;
    };
    "apply": {
        options: {
            "--all"?: true;
            "--matching"?: string;
            "--pool"?: string;
            "--hotplug-max"?: string;
            "--no-monitor"?: true;
            "--print-diff"?: true;
            "--print-xml"?: true;
            "--dry-run"?: true;
        };
        operands: [domain?: string];
        answer: ApplyAnswer;
    };
    "unapply": {
        options: {
            "--all"?: true;
            "--matching"?: string;
            "--print-diff"?: true;
            "--print-xml"?: true;
            "--dry-run"?: true;
        };
        operands: [domain?: string];
        answer: ApplyAnswer;
    };
    "rewrite": {
        options: {
            "--undo"?: true;
            "--migratable"?: true;
            "--pool"?: string;
            "--hotplug-max"?: string;
            "--no-monitor"?: true;
            "--print-diff"?: true;
        };
        operands: [];
        answer: RewriteAnswer;
    };
    "rules": {
        options: Record<string, never>;
        operands: [domain?: string];
        answer: RulesAnswer;
    };
    "list": {
        options: {
            "--output"?: string;
            "--no-headings"?: true;
            "--sort"?: string;
            "--reverse"?: true;
            "--filter"?: string[];
            "--applied"?: true;
        };
        operands: [];
        answer: ListAnswer;
    };
    "show": {
        options: {
            "--timing"?: true;
        };
        operands: [domain: string];
        answer: ShowAnswer;
    };
    "reconcile": {
        options: {
            "--dry-run"?: true;
        };
        operands: [];
        answer: ReconcileAnswer;
    };
    "attach": {
        options: {
            "--size": string;
            "--type"?: "dimm" | "virtio-mem";
            "--cell"?: string;
            "--node"?: string;
            "--persistent"?: true;
        };
        operands: [domain: string];
        answer: ChangeAnswer;
    };
    "detach": {
        options: {
            "--wait"?: string;
        };
        operands: [domain: string, alias: string];
        answer: ChangeAnswer;
    };
    "resize": {
        options: {
            "--wait"?: string;
            "--size": string;
        };
        operands: [domain: string, alias: string];
        answer: ChangeAnswer;
    };
    "park": {
        options: Record<string, never>;
        operands: [domain: string];
        answer: ParkAnswer;
    };
    "unpark": {
        options: {
            "--all"?: true;
            "--discard"?: true;
            "--yes"?: true;
        };
        operands: [domain?: string];
        answer: ParkAnswer;
    };
    "refresh": {
        options: {
            "--all"?: true;
            "--dry-run"?: true;
        };
        operands: [domain?: string];
        answer: ParkAnswer;
    };
    "alerts": {
        options: Record<string, never>;
        operands: [];
        answer: AlertsAnswer;
    };
    "events": {
        options: {
            "--count"?: string;
            "--timeout"?: string;
        };
        operands: [];
        answer: EventsAnswer;
    };
    "metrics": {
        options: Record<string, never>;
        operands: [];
        answer: MetricsAnswer;
    };
    "pause-apply": {
        options: {
            "--for"?: string;
            "--resume"?: true;
        };
        operands: [];
        answer: PauseApplyAnswer;
    };
    "report": {
        options: {
            "--file"?: string;
        };
        operands: [];
        answer: ReportAnswer;
    };
    "config show": {
        options: {
            "--origin"?: true;
        };
        operands: [];
        answer: ConfigShowAnswer;
    };
    "completion": {
        options: {
            "--names"?: "pools" | "aliases";
            "--domain"?: string;
        };
        operands: [shell?: "bash" | "zsh"];
        answer: CompletionAnswer;
    };
    "explain": {
        options: Record<string, never>;
        operands: [code: string];
        answer: ExplainAnswer;
    };
}
