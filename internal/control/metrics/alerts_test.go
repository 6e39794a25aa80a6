package metrics

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// alertFile is the shape of a file of Prometheus' alerting rules.
type alertFile struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

// deploy/alerts.yaml uses no metric and no label that the table does not have, and says of each alert what to do.
func TestAlerts(t *testing.T) {
	path := filepath.Join("..", "..", "..", "deploy", "alerts.yaml")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var file alertFile
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]*metric)
	for _, m := range table {
		byName[m.name] = m
	}
	selector := regexp.MustCompile(`(sluice_[a-z0-9_]+)(?:\{([^}]*)\})?`)
	matcher := regexp.MustCompile(`^\s*([a-z_]+)\s*(?:=|!=|=~|!~)\s*"[^"]*"\s*$`)
	grouping := regexp.MustCompile(`\b(?:by|on|without|ignoring)\s*\(([^)]*)\)`)
	inText := regexp.MustCompile(`\$labels\.([a-z_]+)`)
	alerts := make(map[string]bool)
	for _, g := range file.Groups {
		if g.Name == "" || len(g.Rules) == 0 {
			t.Errorf("group %q has no name or no rules", g.Name)
		}
		for _, r := range g.Rules {
			if r.Alert == "" || alerts[r.Alert] {
				t.Errorf("alert %q has no name, or it is there twice", r.Alert)
			}
			alerts[r.Alert] = true
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if _, err := time.ParseDuration(r.For); r.For != "" && err != nil {
				t.Errorf("%s: for: %v", r.Alert, err)
			}
			used := selector.FindAllStringSubmatch(r.Expr, -1)
			if len(used) == 0 {
				t.Errorf("%s: no metric in %q", r.Alert, r.Expr)
			}
			labels := []string{"instance"}
			for _, u := range used {
				m := byName[u[1]]
				if m == nil {
					t.Errorf("%s: there is no metric %s", r.Alert, u[1])
					continue
				}
				labels = append(labels, m.labels...)
				for _, text := range strings.Split(u[2], ",") {
					if text == "" {
						continue
					}
					if l := matcher.FindStringSubmatch(text); l == nil || !slices.Contains(m.labels, l[1]) {
						t.Errorf("%s: %s has no label for %s", r.Alert, m.name, text)
					}
				}
			}
			for _, list := range grouping.FindAllStringSubmatch(r.Expr, -1) {
				for _, label := range strings.Split(list[1], ",") {
					if label = strings.TrimSpace(label); !slices.Contains(labels, label) {
						t.Errorf("%s: nothing has the label %s in %q", r.Alert, label, r.Expr)
					}
				}
			}
			for _, what := range []string{"summary", "description"} {
				text := r.Annotations[what]
				if len(text) < 20 {
					t.Errorf("%s: no %s", r.Alert, what)
				}
				for _, l := range inText.FindAllStringSubmatch(text, -1) {
					if !slices.Contains(labels, l[1]) {
						t.Errorf("%s: nothing has the label %s in its %s", r.Alert, l[1], what)
					}
				}
			}
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not here to read it as well")
		return
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}
