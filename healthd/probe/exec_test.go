package probe

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/testenv"
)

// shell is a check by a line of shell.
func shell(line string) *Target {
	return &Target{Service: "web", Backend: "web-1", Address: documentation, VIP: documentation, Check: &config.Check{
		Type: config.CheckExec, Timeout: config.Duration(ample), ExecDirectory: "/usr/bin", Command: []string{"/usr/bin/sh", "-c", line}}}
}

func TestExec(t *testing.T) {
	p := New(Options{})
	for _, c := range []struct {
		name, line string
		timeout    time.Duration
		expect     config.Expect
		memory     uint64
		want       verdict
		evidence   string
	}{
		{name: "good", line: "exit 0", want: good, evidence: "exit status 0"},
		{name: "good, with words", line: "echo fine; echo more", want: good, evidence: "exit status 0: fine"},
		{name: "bad", line: "echo replica lags 40 s >&2; exit 3", want: failing, evidence: "exit status 3: replica lags 40 s"},
		{name: "slow", line: "echo begun; sleep 20", timeout: quick, want: failing, evidence: "no end within 300ms: begun"},
		{name: "slow, deaf", line: "trap '' TERM INT HUP; sleep 20; sleep 20", timeout: quick, want: failing, evidence: "no end within 300ms"},
		{name: "killed", line: "kill -9 $$", want: failing, evidence: "ended by signal: killed"},
		{name: "expected", line: "echo lag 3", expect: config.Expect{BodyRegexp: `lag \d$`}, want: failing, evidence: "lacks"},
		{name: "expected, found", line: "echo lag 3", expect: config.Expect{BodyRegexp: `lag \d\n$`}, want: good},
		{name: "a flood of output", line: "head -c 50000000 /dev/zero | tr '\\0' z; echo; exit 4", want: failing, evidence: "exit status 4: zzz"},
		{name: "endless output", line: "yes", timeout: quick, want: failing, evidence: "no end within 300ms: y"},
		{name: "stdin is empty", line: "read x && exit 1; exit 0", want: good},
		{name: "environment", line: `test "$(env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= | sort | tr '\n' ' ')" = "PATH=/usr/bin:/bin SLUICE_ADDRESS=192.0.2.1 SLUICE_BACKEND=web-1 SLUICE_PORT=0 SLUICE_SERVICE=web SLUICE_VIP=192.0.2.1 " && test "$(pwd)" = / && exit 0; env`, want: good},
		{name: "limits", line: `echo $(ulimit -n) $(ulimit -c) $(ulimit -v) $(grep NoNewPrivs /proc/self/status)`, memory: 300 << 20, want: good, evidence: "256 0 307200 NoNewPrivs: 1"},
		{name: "limits cannot be raised", line: `ulimit -n 300 2>/dev/null && exit 1; exit 0`, want: good},
		{name: "too much memory", line: `head -c 200000000 /dev/zero | tail -n 1 | wc -c 2>&1; sort --buffer-size=1G /dev/zero`, timeout: 5 * time.Second, memory: 20 << 20, want: failing, evidence: ""},
		{name: "leaves something behind", line: "sleep 20 & echo left", want: good, evidence: "exit status 0: left"},
		{name: "leaves something behind in a session of its own", line: "setsid sleep 3 & echo left", want: good, evidence: "exit status 0: left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			to := shell(c.line)
			to.Check.Expect, to.Check.Memory = c.expect, c.memory
			if c.timeout != 0 {
				to.Check.Timeout = config.Duration(c.timeout)
			}
			start := time.Now()
			r := expect(t, p, to, c.want, c.evidence)
			if took := time.Since(start); took > ample {
				t.Errorf("took %v", took)
			}
			t.Log(r.Evidence)
		})
	}
}

// What a program started ends with it: the whole group is killed, at the timeout and when the program ends before.
func TestExecKillsTheGroup(t *testing.T) {
	for _, end := range []string{"", "sleep 60"} {
		file := filepath.Join(t.TempDir(), "pid")
		to := shell("(sleep 60; true) & echo $! > " + file + "; " + end)
		to.Check.Timeout = config.Duration(time.Second)
		New(Options{}).Probe(t.Context(), to)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(ample); ; time.Sleep(5 * time.Millisecond) {
			status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			if err != nil || strings.Contains(string(status), ") Z ") { // init reaps it when it likes
				break
			}
			if time.Now().After(deadline) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				t.Fatalf("with %q at its end: what the program started lives on", end)
			}
		}
	}
}

// A 17th program waits for its turn, and gets its whole time then.
func TestExecAtOnce(t *testing.T) {
	p := New(Options{})
	var wg sync.WaitGroup
	for range maxExecs {
		wg.Go(func() { expect(t, p, shell("sleep 0.5"), good, "") })
	}
	for deadline := time.Now().Add(ample); len(p.execs) < maxExecs && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	to := shell("exit 0")
	to.Check.Timeout = config.Duration(10 * time.Millisecond)
	expect(t, p, to, nothing, "16 programs of exec checks run already")
	expect(t, p, shell("exit 0"), good, "")
	wg.Wait()
}

// Only programs that nobody but root can replace are run.
func TestExecTrust(t *testing.T) {
	testenv.RequireRoot(t)
	p := New(Options{})
	dir := filepath.Join(t.TempDir(), "checks")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := func(name, to string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fine := write("fine", "#!/bin/sh\necho $0 $1\n", 0o755)
	theirs := write("theirs", "#!/bin/sh\n", 0o755)
	if err := os.Chown(theirs, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		command, directory string
		want               verdict
		evidence           string
	}{
		{fine, dir, good, "exit status 0: " + fine + " arg"},
		{link("alias", fine), dir, good, "exit status 0"},
		{link("away", "/usr/bin/true"), dir, nothing, "not in health.exec_directory"},
		{"/usr/bin/true", dir, nothing, "not in health.exec_directory"},
		{dir + "/../checks/fine", dir, good, ""},
		{dir + "/missing", dir, nothing, "no such file"},
		{theirs, dir, nothing, "root's"},
		{write("writable", "#!/bin/sh\n", 0o775), dir, nothing, "root's"},
		{write("plain", "#!/bin/sh\n", 0o644), dir, nothing, "not an executable file"},
		{dir, filepath.Dir(dir), nothing, "not an executable file"},
		{write("interpreter", "#!/no/such/shell\n", 0o755), dir, nothing, "run " + dir + "/interpreter: no such file"},
		{write("rubbish", "\x7fELF rubbish", 0o755), dir, nothing, "exec format error"},
		{fine, "", nothing, "health.exec_directory"},
	} {
		to := shell("")
		to.Check.ExecDirectory, to.Check.Command = c.directory, []string{c.command, "arg"}
		expect(t, p, to, c.want, c.evidence)
	}
	for _, mode := range []os.FileMode{0o775, 0o757, 0o777 | os.ModeSticky} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		to := shell("")
		to.Check.ExecDirectory, to.Check.Command = dir, []string{fine}
		expect(t, p, to, nothing, "root's")
	}
}

// documentation is an address that nobody has.
var documentation = netip.MustParseAddr("192.0.2.1")
