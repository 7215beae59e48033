package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// nriPlugin is a plugin in the test's process, connected to the daemon's socket. It keeps what it is told; the functions, where set,
// answer.
type nriPlugin struct {
	stub.Stub
	t    *testing.T
	conn net.Conn
	// options are more of the stub's.
	options []stub.Option
	gone    chan struct{} // closed when the daemon has left it

	mu     sync.Mutex
	events []nriEvent

	create   func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update   func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error)
	sync     func([]*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error)
	start    func(*api.Container) error
	runPod   func(*api.PodSandbox) error
	validate func(*api.ValidateContainerAdjustmentRequest) error
	tell     func(event string) error
	// evict goes along with the next answer to CreateContainer.
	evict []*api.ContainerEviction
}

// nriEvent is what a plugin was told.
type nriEvent struct {
	name       string
	pod        *api.PodSandbox
	container  *api.Container
	pods       []*api.PodSandbox
	containers []*api.Container
	resources  *api.LinuxResources
}

const nriConfig = "[nri]\nenable = true\nsocket_path = %q\nplugin_path = %q\nplugin_config_path = %q\n%s"

// newNRINode is a node with NRI on.
func newNRINode(t *testing.T, extra string) *node {
	t.Helper()
	n := newStoppedNRINode(t, extra)
	n.serve()
	return n
}

// newStoppedNRINode is the like of newStoppedNode.
func newStoppedNRINode(t *testing.T, extra string) *node {
	t.Helper()
	dir := t.TempDir()
	n := newStoppedNode(t, fmt.Sprintf(nriConfig, filepath.Join(dir, "nri.sock"), filepath.Join(dir, "plugins"), filepath.Join(dir, "conf.d"), extra))
	n.nri = dir
	return n
}

// connectPlugin connects a plugin. change is called before.
func (n *node) connectPlugin(index, name string, change func(*nriPlugin)) *nriPlugin {
	n.t.Helper()
	p, err := n.tryConnect(index, name, change)
	if err != nil {
		n.t.Fatalf("connect NRI plugin: %v\n%s", err, n.log())
	}
	p.await("Synchronize", 1) // from here on it misses nothing
	return p
}

func (n *node) tryConnect(index, name string, change func(*nriPlugin)) (*nriPlugin, error) {
	p := &nriPlugin{t: n.t, gone: make(chan struct{})}
	if change != nil {
		change(p)
	}
	var err error
	p.Stub, err = stub.New(p, append(p.options, stub.WithPluginIdx(index), stub.WithPluginName(name), stub.WithSocketPath(filepath.Join(n.nri, "nri.sock")),
		stub.WithOnClose(func() { close(p.gone) }),
		stub.WithDialer(func(path string) (net.Conn, error) {
			var err error
			p.conn, err = net.Dial("unix", path)
			return p.conn, err
		}),
		stub.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(p.ask)}, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.answer)}))...)
	if err != nil {
		return nil, err
	}
	if err := p.Start(context.Background()); err != nil {
		return nil, err
	}
	n.t.Cleanup(p.Stop)
	return p, nil
}

// answer adds what the stub has no way to say.
func (p *nriPlugin) answer(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, next ttrpc.Method) (any, error) {
	out, err := next(ctx, unmarshal)
	if r, ok := out.(*api.CreateContainerResponse); ok && r != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		r.Evict, p.evict = p.evict, nil
	}
	return out, err
}

// ask is the like for requests to update containers.
func (p *nriPlugin) ask(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, next ttrpc.Invoker) error {
	if req.Method == "UpdateContainers" {
		r := &api.UpdateContainersRequest{}
		if err := proto.Unmarshal(req.Payload, r); err != nil {
			return err
		}
		p.mu.Lock()
		r.Evict, p.evict = p.evict, nil
		p.mu.Unlock()
		payload, err := proto.Marshal(r)
		if err != nil {
			return err
		}
		req.Payload = payload
	}
	return next(ctx, req, resp)
}

func (p *nriPlugin) note(e nriEvent) error {
	p.mu.Lock()
	p.events = append(p.events, e)
	p.mu.Unlock()
	if p.tell != nil {
		return p.tell(e.name)
	}
	return nil
}

// of are the events of a pod or container, by its ID, without those that only tell of its creation to a new plugin.
func (p *nriPlugin) of(id string) []nriEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.events), func(e nriEvent) bool {
		return e.container.GetId() != id && (e.container != nil || e.pod.GetId() != id)
	})
}

// names are the names of events.
func names(events []nriEvent) string {
	var out []string
	for _, e := range events {
		out = append(out, e.name)
	}
	return strings.Join(out, " ")
}

// await waits for the nth event of a name.
func (p *nriPlugin) await(name string, nth int) nriEvent {
	p.t.Helper()
	var found nriEvent
	eventually(p.t, "event "+name, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		n := 0
		for _, e := range p.events {
			if e.name == name {
				if n++; n == nth {
					found = e
					return true
				}
			}
		}
		return false
	})
	return found
}

func (p *nriPlugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	if err := p.note(nriEvent{name: "Synchronize", pods: pods, containers: containers}); err != nil || p.sync == nil {
		return nil, err
	}
	return p.sync(pods, containers)
}

func (p *nriPlugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	err := p.note(nriEvent{name: "RunPodSandbox", pod: pod})
	if p.runPod != nil {
		return p.runPod(pod)
	}
	return err
}

func (p *nriPlugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, r *api.LinuxResources) error {
	return p.note(nriEvent{name: "UpdatePodSandbox", pod: pod, resources: r})
}

func (p *nriPlugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note(nriEvent{name: "PostUpdatePodSandbox", pod: pod})
}

func (p *nriPlugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note(nriEvent{name: "StopPodSandbox", pod: pod})
}

func (p *nriPlugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note(nriEvent{name: "RemovePodSandbox", pod: pod})
}

func (p *nriPlugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.note(nriEvent{name: "CreateContainer", pod: pod, container: c}); err != nil || p.create == nil {
		return nil, nil, err
	}
	return p.create(pod, c)
}

func (p *nriPlugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(nriEvent{name: "PostCreateContainer", pod: pod, container: c})
}

func (p *nriPlugin) StartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	err := p.note(nriEvent{name: "StartContainer", pod: pod, container: c})
	if p.start != nil {
		return p.start(c)
	}
	return err
}

func (p *nriPlugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(nriEvent{name: "PostStartContainer", pod: pod, container: c})
}

func (p *nriPlugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.note(nriEvent{name: "UpdateContainer", pod: pod, container: c, resources: r}); err != nil || p.update == nil {
		return nil, err
	}
	return p.update(c, r)
}

func (p *nriPlugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(nriEvent{name: "PostUpdateContainer", pod: pod, container: c})
}

func (p *nriPlugin) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.note(nriEvent{name: "StopContainer", pod: pod, container: c})
}

func (p *nriPlugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(nriEvent{name: "RemoveContainer", pod: pod, container: c})
}

func (p *nriPlugin) ValidateContainerAdjustment(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	if err := p.note(nriEvent{name: "ValidateContainerAdjustment", pod: r.GetPod(), container: r.GetContainer()}); err != nil || p.validate == nil {
		return err
	}
	return p.validate(r)
}

func (n *node) remove(podID string) {
	n.t.Helper()
	if _, err := n.StopPodSandbox(n.t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
		n.t.Fatalf("stop pod: %v\n%s", err, n.log())
	}
	if _, err := n.RemovePodSandbox(n.t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
		n.t.Fatalf("remove pod: %v\n%s", err, n.log())
	}
}

// launchedPlugin is a plugin that the daemon starts: it gives each container its configuration.
type launchedPlugin struct{ config string }

func (l *launchedPlugin) Configure(_ context.Context, config, runtime, _ string) (api.EventMask, error) {
	l.config = config + " by " + runtime
	return 0, nil
}

func (l *launchedPlugin) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	a := &api.ContainerAdjustment{}
	a.AddEnv("CONFIGURED", l.config)
	return a, nil, nil
}

// runLaunchedPlugin is the program of one.
func runLaunchedPlugin() int {
	s, err := stub.New(&launchedPlugin{})
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "launched plugin:", err)
		return 1
	}
	return 0
}
