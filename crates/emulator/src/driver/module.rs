//! Modules: loading PTX, the variables and kernels in it, and what is known of a kernel.

use super::device::{SHARED_DEFAULT, limits};
use super::error::{Answer, Code, fail, invalid};
use super::{Driver, Handle, State, new_handle, not_found};
use crate::memory::{Owner, Touch};
use crate::program::{self, Addresses, Program};
use crate::ptx::ast::{self, Space};
use crate::ptx::{self, ParseError};
use std::collections::HashMap;
use std::sync::Arc;

/// A loaded module.
pub(crate) struct Module {
    pub(crate) context: Handle,
    kernels: HashMap<String, Arc<Program>>,
    /// Kernels by name that somebody asked for.
    handles: HashMap<String, Handle>,
    /// Address and bytes of each variable.
    globals: HashMap<String, (u64, usize)>,
    /// Memory of the variables.
    pub(crate) storage: Vec<u64>,
    /// Bytes of constant variables.
    constant: usize,
}

/// A kernel of a module.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) context: Handle,
    pub(crate) module: Handle,
    pub(crate) program: Arc<Program>,
    /// The most shared memory a launch may give, in bytes.
    pub(crate) dynamic_limit: u32,
    carveout: i32,
    constant: usize,
}

impl Driver {
    /// The architecture of the devices, 80 for 8.0.
    pub(crate) fn architecture(&self) -> u32 {
        self.options.capability.0 * 10 + self.options.capability.1
    }

    /// Loads a module from PTX: every kernel is decoded, so that what cannot be run is found here.
    pub(crate) fn load_module(&self, text: &str) -> Answer<Handle> {
        let context = self.lock().current()?;
        let module = ptx::parse(text).map_err(|error| {
            let line = usize::try_from(error.line()).ok().and_then(|line| text.lines().nth(line.checked_sub(1)?));
            let code = match error {
                ParseError::UnsupportedVersion { .. } => Code::UNSUPPORTED_PTX_VERSION,
                _ => Code::INVALID_PTX,
            };
            fail(code, format!("{error}: `{}`", line.unwrap_or_default().trim()))
        })?;
        self.check_target(&module.target)?;
        let mut storage = Vec::new();
        let loaded = self.place_variables(&module, context, &mut storage).and_then(|(globals, addresses)| {
            let mut kernels = HashMap::new();
            for entry in module.functions.iter().filter(|function| function.is_entry && function.body.is_some()) {
                let program = program::decode(&module, entry, &addresses)
                    .map_err(|error| fail(Code::INVALID_PTX, error.to_string()))?;
                kernels.insert(entry.name.clone(), Arc::new(program));
            }
            Ok((globals, kernels))
        });
        let (globals, kernels) = loaded.inspect_err(|_| {
            for &address in &storage {
                let _ = self.memory.free(address);
            }
        })?;
        let constant = module.variables.iter().filter(|variable| variable.space == Space::Constant);
        let constant = constant.filter_map(|variable| variable.size).sum();
        let handle = new_handle();
        let module = Module { context, kernels, handles: HashMap::new(), globals, storage, constant };
        self.lock().modules.insert(handle, module);
        Ok(handle)
    }

    /// Whether the module was compiled for these devices: for the same or an earlier architecture, or with a suffix for
    /// exactly this one (`a`) or its family (`f`).
    fn check_target(&self, target: &ast::Target) -> Answer {
        let own = self.architecture();
        let runs = match target.suffix {
            Some('a') => target.architecture == own,
            Some('f') => target.architecture <= own && target.architecture / 10 == own / 10,
            _ => target.architecture <= own,
        };
        match runs {
            true => Ok(()),
            false => Err(fail(Code::NO_BINARY_FOR_GPU, format!("the PTX is for {target}, the device is an sm_{own}"))),
        }
    }

    /// Allocates and initializes the variables of a module.
    #[allow(clippy::type_complexity)] // two maps by name
    fn place_variables(
        &self,
        module: &ast::Module,
        context: Handle,
        storage: &mut Vec<u64>,
    ) -> Answer<(HashMap<String, (u64, usize)>, Addresses)> {
        let mut state = self.lock();
        let device = state.context(context)?.device;
        let stamp = self.host_stamp(&mut state, "cuModuleLoadData");
        drop(state);
        let (mut globals, mut addresses) = (HashMap::new(), Addresses::new());
        let lasting = |variable: &&ast::Variable| matches!(variable.space, Space::Global | Space::Constant);
        for variable in module.variables.iter().filter(lasting) {
            if variable.external {
                return Err(fail(
                    Code::INVALID_PTX,
                    format!("PTX line {}: {} is external, and modules are not linked", variable.line, variable.name),
                ));
            }
            let bytes = variable.size.unwrap_or(0);
            let address = self.memory.allocate(Owner::Device(device), bytes.max(1) as u64).ok_or_else(|| {
                fail(Code::OUT_OF_MEMORY, format!("no memory is left for the {bytes} bytes of {}", variable.name))
            })?;
            storage.push(address);
            globals.insert(variable.name.clone(), (address, bytes));
            addresses.insert(variable.name.clone(), (variable.space, address));
        }
        for variable in module.variables.iter().filter(lasting) {
            let Some(&(address, size)) = globals.get(&variable.name) else { continue };
            let mut bytes = variable.initial.clone();
            bytes.resize(size, 0);
            for (offset, name, addend) in &variable.addresses {
                let target = globals.get(name).ok_or_else(|| {
                    let line = variable.line;
                    let reason = format!("{} holds the address of {name}, which is no variable", variable.name);
                    fail(Code::INVALID_PTX, format!("PTX line {line}: {reason}"))
                })?;
                let value = target.0.wrapping_add_signed(*addend).to_le_bytes();
                let slot = bytes.get_mut(*offset..).and_then(<[u8]>::first_chunk_mut::<8>);
                *slot.ok_or_else(|| fail(Code::INVALID_PTX, format!("{} is too small", variable.name)))? = value;
            }
            // SAFETY: so many bytes were allocated at this address just now, and nobody else knows it.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, size) };
            self.touch_rows(address, size as u64, size as u64, 1, Touch::Write, &stamp);
        }
        Ok((globals, addresses))
    }

    /// cuModuleUnload: waits for the context, whose kernels may be the module's.
    pub(crate) fn unload(&self, handle: Handle) -> Answer {
        let state = self.lock();
        let context = state.modules.get(&handle).ok_or_else(|| not_found("module", handle))?.context;
        let mut state = self.finish(state, context);
        let module = state.modules.remove(&handle).ok_or_else(|| not_found("module", handle))?;
        state.functions.retain(|_, function| function.module != handle);
        for address in module.storage {
            let _ = self.memory.free(address);
        }
        state.surface(context)
    }

    /// cuModuleGetFunction.
    pub(crate) fn module_function(&self, handle: Handle, name: &str) -> Answer<Handle> {
        let mut state = self.lock();
        state.current()?;
        let State { modules, functions, .. } = &mut *state;
        let module = modules.get_mut(&handle).ok_or_else(|| not_found("module", handle))?;
        if let Some(&function) = module.handles.get(name) {
            return Ok(function);
        }
        let program = module.kernels.get(name).cloned().ok_or_else(|| {
            let mut names: Vec<&str> = module.kernels.keys().map(String::as_str).collect();
            names.sort_unstable();
            let others = if names.is_empty() { "none at all".to_owned() } else { names.join(", ") };
            fail(Code::NOT_FOUND, format!("there is no kernel {name}, but {others}"))
        })?;
        let function = Function {
            context: module.context,
            module: handle,
            dynamic_limit: SHARED_DEFAULT.saturating_sub(program.static_shared as u32),
            program,
            carveout: -1,
            constant: module.constant,
        };
        let own = new_handle();
        functions.insert(own, function);
        module.handles.insert(name.to_owned(), own);
        Ok(own)
    }

    /// cuModuleGetGlobal: address and bytes.
    pub(crate) fn module_global(&self, handle: Handle, name: &str) -> Answer<(u64, usize)> {
        let state = self.lock();
        state.current()?;
        let module = state.modules.get(&handle).ok_or_else(|| not_found("module", handle))?;
        let global = module.globals.get(name).copied();
        global.ok_or_else(|| fail(Code::NOT_FOUND, format!("the module has no variable {name}")))
    }

    /// A kernel by its handle.
    pub(crate) fn function(&self, handle: Handle) -> Answer<Function> {
        self.lock().functions.get(&handle).cloned().ok_or_else(|| not_found("function", handle))
    }

    /// cuFuncGetAttribute.
    pub(crate) fn function_attribute(&self, handle: Handle, attribute: u32) -> Answer<i32> {
        let Function { program, dynamic_limit, carveout, constant, .. } = self.function(handle)?;
        Ok(match attribute {
            0 => program.max_threads as i32,
            1 => program.static_shared as i32,
            2 => constant as i32,
            3 => program.local as i32,
            4 => super::occupancy::registers(&program) as i32,
            // The virtual architecture and that of the binary.
            5 => program.target.architecture as i32,
            6 => self.architecture() as i32,
            7 => 0,
            8 => dynamic_limit as i32,
            9 => carveout,
            // Clusters, which have one thread block here.
            10..=15 => 0,
            _ => return Err(invalid(format!("there is no function attribute {attribute}"))),
        })
    }

    /// cuFuncSetAttribute.
    pub(crate) fn set_function_attribute(&self, handle: Handle, attribute: u32, value: i32) -> Answer {
        let optin = limits(self.options.capability).shared_optin;
        let mut state = self.lock();
        state.current()?;
        let function = state.functions.get_mut(&handle).ok_or_else(|| not_found("function", handle))?;
        let most = optin.saturating_sub(function.program.static_shared as u32);
        match attribute {
            8 => match u32::try_from(value) {
                Ok(bytes) if bytes <= most => function.dynamic_limit = bytes,
                _ => {
                    let name = &function.program.name;
                    return Err(invalid(format!("{name} can have {most} bytes of dynamic shared memory, not {value}")));
                }
            },
            9 if (-1..=100).contains(&value) => function.carveout = value,
            _ => return Err(invalid(format!("function attribute {attribute} cannot be set to {value}"))),
        }
        Ok(())
    }
}
