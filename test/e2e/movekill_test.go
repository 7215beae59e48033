package e2e

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mover is a node on which images are made, brought and removed by hand while its daemon is killed.
type mover struct {
	*node
	check     *checker
	base      string // image of container
	container string // prints all the time; what it has written is committed
	logFile   string
	archive   string // of brought
	before    []string
	frozen    int // how often a kill left the container so
}

const (
	brought   = "docker.io/checked/brought:latest"
	committed = "docker.io/own/committed:v1"
	// written is what the committed image has beside the one it was made of.
	written = `cd / && sha256sum -c -s sums && sha256sum -c -s written.sums`
)

// TestMovesUnderKills kills the daemon at random moments of commit, import and rm. After each restart the container that is
// being committed runs on, each image that is listed is whole, the check finds nothing, and the same command succeeds.
// CRISERVER_E2E_KILLS is how often, CRISERVER_E2E_SEED repeats a run.
func TestMovesUnderKills(t *testing.T) {
	rng, seed := seeded(t)
	kills := number(t, "CRISERVER_E2E_KILLS", 15)
	base := checkedImage(t, "base", 1, 512)
	checkedImage(t, "brought", 2, 4096)
	m := newMover(t, base)
	commands := []command{
		{name: "commit", do: m.commit, makes: committed, prepare: m.forget},
		{name: "import", do: m.bring, makes: brought, prepare: m.forget},
		{name: "rm", do: func() error { return m.try("rm", brought) }, prepare: func() { m.pull(brought) }},
	}
	for i := range commands {
		c := &commands[i]
		c.prepare()
		begin := time.Now()
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v\n%s", c.name, err, m.log())
		}
		c.span = time.Since(begin)
		t.Logf("%s takes %s", c.name, c.span)
	}
	cutOff := 0
	tested := func() bool { return cutOff >= kills/3 && m.frozen > 0 }
	for kill := 0; kill < kills || !tested() && kill < 4*kills; kill++ {
		c := &commands[kill%len(commands)]
		if !m.round(rng, c) {
			cutOff++
		}
		if t.Failed() {
			t.Fatalf("seed %d, kill %d, of %s\n%s", seed, kill, c.name, m.log())
		}
	}
	t.Logf("seed %d, at least %d kills: %d commands were cut off, %d times the container was left frozen", seed, kills, cutOff, m.frozen)
	if !tested() {
		t.Error("the test did not test much")
	}
	m.end()
}

// command is one of those that are cut off.
type command struct {
	name    string
	do      func() error
	makes   string // an image; "" if the command takes one away
	prepare func()
	span    time.Duration
}

// round cuts a command off, and repeats it. It tells whether it had ended before.
func (m *mover) round(rng *rand.Rand, c *command) (ended bool) {
	m.t.Helper()
	c.prepare()
	result := make(chan error, 1)
	go func() { result <- c.do() }()
	time.Sleep(time.Duration(rng.Float64() * 1.1 * float64(c.span)))
	m.kill()
	err := <-result
	time.Sleep(50 * time.Millisecond) // for what it had printed before
	if !m.moves(100 * time.Millisecond) {
		m.frozen++
	}
	if rng.IntN(3) == 0 { // in the middle of what it repairs at its start
		m.launch()
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		m.kill()
	}
	m.start()
	if !m.moves(5 * time.Second) {
		m.t.Errorf("%s, cut off: the container stands still", c.name)
	}
	listed := m.visible()
	for _, name := range listed {
		m.whole(name)
	}
	if there := slices.Contains(listed, c.makes); err == nil && c.makes != "" && !there {
		m.t.Errorf("%s: %s is not there, and the command had succeeded; there are %v", c.name, c.makes, listed)
	}
	if there := slices.Contains(listed, brought); err == nil && c.makes == "" && there {
		m.t.Errorf("%s is there, whose removal had succeeded", brought)
	}
	if out, err := m.tryImage("", "check"); err != nil || !strings.Contains(out, "nothing is wrong") {
		m.t.Errorf("check after %s: %v, %s", c.name, err, out)
	}
	begin := time.Now()
	if again := c.do(); again != nil && c.makes != "" {
		m.t.Errorf("%s again: %v", c.name, again)
	}
	c.span = (c.span + time.Since(begin)) / 2 // other programs may be at work as well, now and then
	if !m.moves(5 * time.Second) {
		m.t.Errorf("%s again: the container stands still", c.name)
	}
	listed = m.visible()
	if c.makes != "" && !slices.Contains(listed, c.makes) || c.makes == "" && slices.Contains(listed, brought) {
		m.t.Errorf("%s again: there are %v", c.name, listed)
	}
	if c.makes != "" {
		m.whole(c.makes)
	}
	return err == nil
}

func newMover(t *testing.T, base string) *mover {
	t.Helper()
	m := &mover{node: newNode(t), base: base}
	m.collect()
	m.before = m.stored()
	m.pull(brought)
	m.archive = filepath.Join(m.dir, "brought.tar")
	m.image("export", brought, "-o", m.archive)
	m.forget()
	m.pull(base)
	m.check = newChecker(m.node)
	const script = `cd /; for i in 1 2 3 4 5 6; do /bin/busybox dd if=/dev/urandom of=/written$i bs=1M count=8 2>/dev/null; done
		sha256sum written* >sums~; /bin/busybox mv sums~ written.sums; while :; do echo tick; /bin/busybox usleep 10000; done`
	m.container = m.run(m.check.podID, m.check.pod, shell("ticks", script, func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = base
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	}))
	m.logFile = m.status(m.container).LogPath
	eventually(t, "the container has written its files", func() bool { return m.moves(time.Second) })
	return m
}

// try runs a command without an end to the test.
func (m *mover) try(args ...string) error {
	_, err := m.tryImage("", args...)
	return err
}

func (m *mover) commit() error { return m.try("commit", m.container, committed) }

func (m *mover) bring() error { return m.try("import", m.archive) }

// forget removes what the commands make, and what has lost its name to the next one.
func (m *mover) forget() {
	m.t.Helper()
	for _, name := range m.visible() {
		if name != m.base {
			m.removeImage(name)
		}
	}
}

// whole checks an image by what it has.
func (m *mover) whole(name string) {
	m.t.Helper()
	if name == committed {
		m.check.succeeds(name, written)
		return
	}
	m.check.whole(name)
}

// moves tells whether the container prints something more within d.
func (m *mover) moves(d time.Duration) bool {
	size := func() int64 {
		info, err := os.Stat(m.logFile)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	before := size()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if size() > before {
			return true
		}
	}
	return false
}

// end removes all that is there: then the store is as it was.
func (m *mover) end() {
	m.t.Helper()
	m.check.end()
	m.forget()
	m.removeImage(m.base)
	m.collect()
	m.wantStored(m.before)
}
