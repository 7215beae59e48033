# make help lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The version of the source, and, when HEAD is no release, how far it is from the last tag.
VERSION ?= 0.1.0
LDFLAGS := -s -w -X main.version=$(VERSION)
BIN     := $(CURDIR)/.cache/bin
TAGS    := seccomp

# Packages whose tests touch the machine (mounts, namespaces, cgroups, networks) run one after the other.
PURE   = $(shell go list ./... | grep -E '/pkg/(cri|imagesvc|record|sandbox/(spec|user|want|flight|signals))(/|$$)|/cmd/criserver|/test/layout')
# Without the race detector: images only compress, and of the others the test binary is itself the init of
# containers, in cgroups that the detector's memory does not fit in.
SLIM   = $(shell go list ./... | grep -E '/test/images|/pkg/sandbox/(monitor/server|runtime)(/|$$)')
KERNEL = $(filter-out $(PURE) $(SLIM),$(shell go list ./... | grep -v /test/e2e))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install the Debian packages and tools that are missing
	@hack/deps.sh build test lint

build: bin/criserver bin/crimonitor ## build bin/criserver and bin/crimonitor

.PHONY: bin/criserver bin/crimonitor # go decides what is out of date

bin/criserver:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/criserver

# libseccomp is a C library; linked statically, the monitor needs nothing of the machine it runs on.
bin/crimonitor:
	CGO_ENABLED=1 go build -trimpath -tags '$(TAGS) osusergo netgo' -ldflags '$(LDFLAGS) -extldflags -static' -o $@ ./cmd/crimonitor

quickstart: ## install, build and run one container from a local registry; removes all it made but the packages
	@hack/quickstart.sh

test: deps lint build test-unit test-fuzz test-e2e ## all that CI runs: deps, lint, build, unit tests, fuzzing, e2e tests

test-unit: ## unit tests of every package, on the real kernel (root)
	go test -race -tags $(TAGS) $(PURE)
	go test -race -p 1 -tags $(TAGS) $(KERNEL)
	go test -p 1 -tags $(TAGS) $(SLIM)
	go test -run TestUnpackMemory ./pkg/imagesvc/unpack

# The parsers of what strangers write: each fuzz target with its package.
FUZZ     := registry:FuzzParse registry/hosts:FuzzHosts document:FuzzManifest document:FuzzConfig unpack:FuzzApply archive:FuzzRead
FUZZTIME ?= 30s

test-fuzz: ## fuzz the parsers of images, FUZZTIME (30s) each
	@for f in $(FUZZ); do \
	  echo "fuzz $${f#*:} for $(FUZZTIME)"; \
	  go test -run '^$$' -fuzz "^$${f#*:}$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x ./pkg/imagesvc/$${f%:*} >.cache/fuzz.log 2>&1 || \
	    { cat .cache/fuzz.log; exit 1; }; \
	  tail -n 1 .cache/fuzz.log; \
	done

test-e2e: build ## black-box tests against the built binaries (root)
	go test -p 1 -count=1 -timeout 30m -tags $(TAGS) ./test/e2e/...

test-vm: build ## on pure cgroup v2, device-mapper, AppArmor and SELinux, in a virtual machine: crictl smoke test, kernel tests, systemd units
	hack/vm/smoke.sh
	hack/vm/smoke.sh '^(TestResourceFields|TestResourceRefusals|TestLeastMemory|TestUpdateContainerResources|TestCgroupParents?)$$'
	hack/vm/smoke.sh '^(TestHandlers|TestHandlerDefaults|TestPIDNamespaces|TestNRIAdjust|TestStopInFrozenCgroup)$$'
	hack/vm/smoke.sh '^TestDevmapper'
	hack/vm/smoke.sh '^(TestUserNamespace|TestUserNamespaceKinds|TestMountFields|TestDevices|TestSeccompAndCapabilities)$$'
	hack/vm/powercut.sh
	hack/vm/test.sh
	hack/vm/selinux.sh
	hack/vm/run-in-vm --systemd --timeout 300 -- hack/vm/systemd.sh
	hack/vm/smoke.sh --systemd '^(TestSystemdDriver|TestJournal|TestRestore|TestStopSignalAndGrace|TestOOMKilled|TestDaemonKilled)$$'

critest-vm: build ## the CRI conformance suite in a virtual machine: with AppArmor, cgroup v2, user namespaces
	hack/vm/run-in-vm --timeout 1800 --mem 3072 -- hack/critest.sh

lint: ## formatting, vet and golangci-lint
	@unformatted=$$(gofmt -l cmd pkg test hack); [[ -z $$unformatted ]] || { echo "not gofmt'ed: $$unformatted" >&2; exit 1; }
	go vet -tags $(TAGS) ./...
	$(BIN)/golangci-lint run ./...

fmt: ## format the code
	gofmt -w cmd pkg test hack

critest: build ## the CRI conformance suite against criserver
	hack/critest.sh

critest-all: build ## the CRI conformance suite thrice, once of that by WebSocket, and with 8 specs at a time, by the built-in runtime and by runc
	@status=0; for oci in '' '--oci .cache/bin/runc'; do \
	  for flags in '' '' '-websocket-exec -websocket-attach -websocket-portforward' '-parallel 8'; do \
	    echo "critest $$oci $$flags"; hack/critest.sh $$oci $$flags || status=1; \
	  done; \
	done; exit $$status

bench: build ## start a pod and a container on criserver and on containerd, in turn
	hack/bench/run.sh

bench-pull: build ## pull images with criserver and with containerd 2, in turn
	hack/bench/pull.sh

bench-logs: build ## take a container's output with criserver and with containerd 2, in turn
	hack/bench/logs.sh

probes: build ## what probes cost that run a command in each of 110 pods once a second, for PROBES (10m) (root)
	CRISERVER_PROBES=$(or $(PROBES),10m) go test -p 1 -count=1 -v -timeout 1h -tags $(TAGS) -run '^TestExecProbes$$' ./test/e2e/

memory: build ## what crimonitor costs, idle and per container, and the stream server, per session
	hack/memory.sh

clean: ## remove what was built and cached
	rm -rf bin .cache

.PHONY: help deps build quickstart test test-unit test-fuzz test-e2e test-vm lint fmt critest critest-all critest-vm bench bench-pull bench-logs probes memory clean
