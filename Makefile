# Sluice. `make` alone lists the targets.

SHELL      := /bin/bash -o pipefail
GO         ?= go
TOOL       := $(GO) tool -modfile=tools/go.mod
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS    := -s -w -X main.version=$(VERSION)
CLANG      := clang-14
# For each target of `make fuzz`; FUZZTIME=10m for more. CI has its own in .ci/test.
FUZZTIME   ?= 30s
COMMANDS   := sluice sluice-healthd sluice-agent

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build sluice, sluice-healthd and sluice-agent into bin/
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(COMMANDS:%=./cmd/%)

.PHONY: demo
demo: build ## build, and run the main job in network namespaces (root; nothing else)
	./bin/sluice demo

.PHONY: test
test: ## everything: unit, race, functional, lint, BPF objects, fuzz (root; installs what it needs)
	@./.ci/test

.PHONY: test-unit
test-unit: ## the tests that need no root, under a minute
	$(GO) test -short ./...

# What emulated machines are made of; busybox is the shell in them.
GUEST := qemu-system-x86 seabios xz-utils busybox-static

.PHONY: test-zerocopy
test-zerocopy: build ## real drivers in zero-copy mode, in emulated machines (root; installs QEMU, fetches kernels)
	@./.ci/install $(GUEST)
	CGO_ENABLED=0 $(GO) test -tags guest -count 1 -timeout 15m -v ./testenv/guest/zerocopy

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, and where unsafe may be
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo 'gofmt -w these files'; exit 1; }
	$(GO) vet -tags guest,floods,health ./...
	$(TOOL) staticcheck -tags guest,floods,health ./...
	@! grep -rl --include='*.go' '"unsafe"' . | grep -v -e '^./forwarder/xsk/' -e '^./internal/shm/' || { echo 'unsafe belongs into forwarder/xsk and internal/shm'; exit 1; }

.PHONY: generate
generate: ## compile the BPF programs anew, with the pinned clang
	@command -v $(CLANG) >/dev/null || { echo '$(CLANG) is missing: apt-get install clang-14 llvm-14 libbpf-dev linux-libc-dev'; exit 1; }
	$(GO) generate ./...

.PHONY: check-generate
check-generate: ## do the committed BPF objects match their source?
	@./.ci/check-generate

.PHONY: vulncheck
vulncheck: ## known vulnerabilities in what is linked
	$(TOOL) govulncheck ./...

# Peers of the benchmarks; without them their rows say which package is missing.
PEERS := dpdk-dev librte-net-af-xdp23 nftables haproxy nginx-light libnginx-mod-stream wrk nghttp2-client iperf3

.PHONY: bench
bench: build ## all benchmarks against their peers, and a report of tables and pictures in bench-results (root; installs the peers; an hour, and nothing else should run)
	@./.ci/install $(PEERS)
	./bin/sluice bench all --out bench-results
	$(GO) run ./bench/plot bench-results/report.json bench-results

.PHONY: bench-smoke
bench-smoke: build ## their short form, which asserts ratios and counts only (root; installs the peers; two minutes)
	@./.ci/install $(PEERS)
	./bin/sluice bench all --smoke --check --out bench-results/smoke

.PHONY: bench-guest
bench-guest: build ## instructions a packet on two cards, in zero-copy and copy mode, with and without the fast path, beside Linux IPVS and asavie/xdp, in emulated machines (root; installs QEMU, fetches a kernel; some minutes)
	@./.ci/install $(GUEST)
	CGO_ENABLED=0 $(GO) test -tags guest -count 1 -timeout 30m -v -run TestRates ./testenv/guest/zerocopy -args -rounds 7

.PHONY: bench-go
bench-go: ## Go's own benchmarks, of parts
	$(GO) test -run '^$$' -bench . -benchmem ./conntrack ./maglev ./forwarder/...

.PHONY: sim
sim: build ## what flows survive, with a million of them, beside other schemes; takes some minutes
	./bin/sluice sim

.PHONY: test-long
test-long: sim ## the long forms: simulator, a hundred million operations on the flow table, as many sources on the limits, ten million packets through worker and XDP program, the functional tests, floods and failing backends with the fast path, ten minutes a fuzz target
	SLUICE_STRESS_OPS=100000000 $(GO) test -count 1 -timeout 0 -v -run 'TestConcurrent|TestLinearizable' ./conntrack
	SLUICE_STRESS_OPS=20000000 $(GO) test -race -count 1 -timeout 0 -v -run 'TestConcurrent|TestLinearizable' ./conntrack
	SLUICE_STRESS_OPS=100000000 $(GO) test -count 1 -timeout 0 -v -run 'TestGuardAlloc' ./forwarder/guard
	SLUICE_DIFFERENTIAL=10000000 $(GO) test -count 1 -timeout 0 -v -run 'TestFastPathEqualsWorker' ./forwarder
	SLUICE_TEST_FAST_PATH=on $(GO) test -count 1 -parallel 2 -timeout 30m ./cmd/sluice
	SLUICE_TEST_FAST_PATH=on $(MAKE) test-floods test-health
	$(MAKE) fuzz FUZZTIME=10m

.PHONY: test-floods
test-floods: ## how regular clients fare during floods, with and without a defence (root; two cores and nothing else on them; ten minutes)
	$(GO) test -tags floods -count 1 -timeout 30m -v -run 'TestCookieThroughput|TestDropsInXDP|TestFloods' ./cmd/sluice

.PHONY: test-health
test-health: ## how long clients lose connections to a backend that fails, beside HAProxy; what must change nothing; ten thousand backends (root; installs HAProxy and nftables; two cores and nothing else on them; ten minutes)
	@./.ci/install haproxy nftables nginx-light iproute2
	$(GO) test -tags health -count 1 -parallel 6 -timeout 30m -v -run 'TestHealth' ./cmd/sluice

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME
	@./.ci/fuzz $(FUZZTIME)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
