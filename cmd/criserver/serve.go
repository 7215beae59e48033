package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"

	"criserver/cmd/criserver/config"
	"criserver/cmd/criserver/storage"
	"criserver/pkg/admin"
	"criserver/pkg/checkpoints"
	"criserver/pkg/cni"
	"criserver/pkg/cri"
	"criserver/pkg/cri/streaming"
	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/record"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/handler"
)

// connectLimit is how long the start waits until crimonitor answers; the CRI is served all the same.
const connectLimit = 15 * time.Second

// keepLost is how long layers stay that no image needs because records of images were lost.
const keepLost = time.Hour

// serve runs the daemon until ctx ends. Containers go on after it.
func serve(ctx context.Context, c *config.Config, load loadFunc) error {
	if os.Geteuid() != 0 {
		return errors.New("criserver must run as root: it makes namespaces, mounts and cgroups")
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d := &daemon{}
	return bounded(ctx, stopLimit, func() error { return d.run(ctx, stop, c, load) }, func() error { return d.stages.hung(stopLimit) })
}

// run is serve without its limit, which counts from the end of ctx on: stop ends it when the daemon ends by itself.
func (d *daemon) run(ctx context.Context, stop func(), c *config.Config, load loadFunc) error {
	if err := d.stages.run("open log", func() error { return c.Log.SetUp() }); err != nil {
		return err
	}
	lock, err := lockState(c.State)
	if err != nil {
		return err
	}
	defer lock.Close()
	err = d.start(ctx, c)
	if err == nil {
		ignore := handleSignals(func() error { return d.reload(c, load) })
		err = d.serve(ctx, c)
		stop()
		_ = d.stages.run("reload of the configuration", func() error { ignore(); return nil })
	}
	stop()
	return errors.Join(err, d.close())
}

// serve answers on both sockets until ctx ends.
func (d *daemon) serve(ctx context.Context, c *config.Config) error {
	listener, err := listen(c.Socket, socketMode)
	if err != nil {
		return err
	}
	adminListener, err := listen(adminSocket(c), adminSocketMode)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := grpc.NewServer(cri.Options()...)
	cri.Register(server, d.backends())
	administration := admin.NewServer(d.adminBackends())
	served := make(chan error, 2)
	go func() { served <- server.Serve(listener) }()
	go func() { served <- administration.Serve(adminListener) }()
	logrus.WithFields(logrus.Fields{
		"version": version, "socket": c.Socket, "admin": adminSocket(c), "pid": os.Getpid(),
	}).Info("criserver serves")
	select {
	case err = <-served: // none ends by itself, but on error
		served <- nil
	case <-ctx.Done():
		logrus.Info("criserver stops; containers go on")
	}
	go d.images.Close() // so that nobody waits for pulls: they go on where they were after the next start
	d.pods.Stop()
	stopped := make(chan error, 1)
	go func() {
		stopped <- d.stages.run("calls of administrators", func() error {
			limit, cancel := context.WithTimeout(context.Background(), callsLimit)
			defer cancel()
			return administration.Stop(limit)
		})
	}()
	_ = d.stages.run("calls of the CRI", func() error { stopServer(server); return nil })
	return errors.Join(err, <-stopped, <-served, <-served)
}

// stopServer lets the calls under way end, for a while.
func stopServer(s *grpc.Server) {
	timer := time.AfterFunc(callsLimit, s.Stop)
	defer timer.Stop()
	s.GracefulStop()
}

// daemon is the wired-up whole.
type daemon struct {
	stages                   stages
	podRecords, imageRecords *record.DB
	storage                  *storage.Storage
	network                  *cni.Network
	images                   *imagesvc.Service
	handlers                 *handler.Set
	cgroupDriver             driver.Kind
	pods                     *sandbox.Service
	plugins                  plugins
	checkpoints              *checkpoints.Service
	streams                  *streaming.Client
	streamsCgroup            string
}

// start opens and starts everything. On error the parts that are there must be closed.
func (d *daemon) start(ctx context.Context, c *config.Config) error {
	for _, stage := range []struct {
		name string
		open func(context.Context, *config.Config) error
	}{
		{"open records", d.openRecords}, {"open snapshots", d.openStorage}, {"open images", d.openImages},
		{"open network", d.openNetwork}, {"probe runtimes", d.openHandlers}, {"set up NRI", d.openPlugins}, {"open pods", d.openPods},
		{"start NRI plugins", d.startPlugins},
	} {
		if err := d.stages.run(stage.name, func() error { return stage.open(ctx, c) }); err != nil {
			return fmt.Errorf("%s: %w", stage.name, err)
		}
	}
	d.images.CleanUp(ctx)
	return nil
}

func (d *daemon) openRecords(ctx context.Context, c *config.Config) error {
	var err error
	if d.podRecords, err = openRecords(ctx, filepath.Join(c.Root, "pods.db"), record.Options{}); err != nil {
		return err
	}
	d.imageRecords, err = openRecords(ctx, filepath.Join(c.Root, "images.db"), record.Options{Sync: true})
	return err
}

func (d *daemon) openStorage(ctx context.Context, c *config.Config) (err error) {
	d.storage, err = storage.Open(ctx, c)
	return err
}

func (d *daemon) openImages(ctx context.Context, c *config.Config) error {
	settings, err := imageSettings(c)
	if err != nil {
		return err
	}
	images := imagesvc.Config{
		Root: c.Root, LayerRoot: storage.LayerRoot(c),
		ParallelLayers: c.Image.MaxParallelLayers, Connections: c.Image.ConnectionsPerLayer,
		Limits:    unpack.Limits{Bytes: int64(c.Image.MaxLayerSize), Entries: c.Image.MaxLayerFiles, Window: int64(c.Image.MaxZstdWindow)},
		KeepBlobs: c.Image.KeepLayers, KeepDownloads: time.Duration(c.Image.KeepDownloads), KeepLost: keepLost,
	}
	d.images, err = imagesvc.New(ctx, images, d.imageRecords, settings, d.storage.Driver)
	return err
}

func (d *daemon) openNetwork(ctx context.Context, c *config.Config) error {
	network, err := c.NetworkConfig()
	if err != nil {
		return err
	}
	d.network, err = cni.New(ctx, network)
	return err
}

// close ends the parts in the opposite order; crimonitor too, if it has nothing to do.
func (d *daemon) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	var errs []error
	end := func(name string, fn func() error) { errs = append(errs, d.stages.run("close "+name, fn)) }
	if d.streams != nil {
		end("streams", func() error { return stopStreams(ctx, d.streams, d.streamsCgroup) })
	}
	if d.pods != nil {
		end("pods", func() error { return d.pods.Close(ctx, true) })
	}
	end("NRI plugins", func() error { return d.plugins.close(ctx) })
	if d.network != nil {
		end("network", d.network.Close)
	}
	if d.images != nil {
		end("images", func() error { d.images.Close(); return nil })
	}
	if d.storage != nil {
		end("snapshots", func() error { return d.storage.Close(ctx) })
	}
	for _, db := range []*record.DB{d.imageRecords, d.podRecords} {
		if db != nil {
			end("records", db.Close)
		}
	}
	return errors.Join(errs...)
}

func openRecords(ctx context.Context, path string, o record.Options) (*record.DB, error) {
	db, err := record.Open(ctx, path, o)
	if err != nil {
		return nil, err
	}
	if aside := db.Salvaged(); aside != "" {
		logrus.WithField("file", aside).Error("records were damaged and have been set aside; what they stood for is removed")
	}
	return db, nil
}
